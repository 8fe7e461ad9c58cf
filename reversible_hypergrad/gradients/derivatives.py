"""Second derivatives, as torch computes them, beside differences of the gradient."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reversible_hypergrad.replay.environment import mix

__all__ = ["BOUND", "disagreement"]

# Of a difference, in units of the variables' size, one for each try. In float64 rounding makes an error of some 1e-16 / step
# times |g| / |H v|, while so small a step hardly ever crosses a kink, as those of ReLU, of which there is one per activation; and
# the next try is made with a smaller one. In float32 the step balances rounding with curvature.
_STEPS = {torch.float64: (1e-8, 1e-9, 1e-10), torch.float32: (4e-3, 4e-3)}
# What is above is wrong: errors of formulas are of the order of the derivative itself. In float32 steps cross kinks, whose part
# does not become less with the step: that much of the derivative must be missing before something is said.
BOUND = {torch.float64: 1e-4, torch.float32: 0.5}

Vectors = Sequence[Tensor | None]


def disagreement(
    gradients: Callable[[], Vectors], products: Callable[[Sequence[Tensor]], Vectors], variables: Sequence[Tensor], seed: int
) -> float:
    """How far apart they are: |<H u, v> - <u, dg/dv>| in units of |dg/dv|.

    ``v`` is random, and ``u`` half dg/dv itself, by differences, half random: of random ones alone, errors would share the norm
    with all dimensions, and vanish among millions. The result is the smallest of up to three tries, of which the first one that
    is within bounds is the last, since a kink may be crossed in one; from the second one on, elements whose gradient is zero stay
    where they are, since they may be on a jump. NaN where something is not finite.

    Args:
        gradients: at the present values of ``variables``; None stands for zero.
        products: directions, shaped as the gradients, times the gradients' derivatives by ``variables``.
        variables: moved in place, and back.
        seed: of the directions.

    Cost: three gradients and one product per try. Memory: beside what these take, one direction and a copy of the variables.
    """
    precision = torch.float64 if any(x.dtype == torch.float64 for x in variables) else torch.float32
    sizes = [x.detach().double().square().mean().sqrt().item() + 1e-3 if x.numel() else 1.0 for x in variables]
    least = math.inf
    for k, step in enumerate(_STEPS[precision]):
        moves = _Moves(variables, sizes, mix(seed) + 2 * k, gradients() if k else ())
        change = _difference(gradients, moves, step)
        size = math.sqrt(sum(float(c.square().sum()) for c in change))
        u = _mixed(change, size, mix(seed) + 2 * k + 1)
        expected = sum(float((a * b).sum()) for a, b in zip(u, change, strict=True))
        del change
        found = products([a.to(x.dtype) for a, x in zip(u, variables, strict=False)])
        analytic = sum(float((p.detach().double() * moves.direction(i)).sum()) for i, p in enumerate(found) if p is not None)
        if not math.isfinite(size + analytic):
            return math.nan
        least = min(least, abs(analytic - expected) / (size or 1.0))
        if least <= BOUND[precision]:
            break
    return least


class _Moves:
    """Along random directions, which are made whenever they are needed.

    Args:
        variables: to be moved in place.
        sizes: of their directions.
        seed: likewise.
        gradients: elements of which they are zero stay, as those that a model casts to integers.
    """

    def __init__(self, variables: Sequence[Tensor], sizes: Sequence[float], seed: int, gradients: Vectors) -> None:
        self.variables, self._sizes, self._seed = variables, sizes, seed
        self._masks = [None if g is None else g.detach() != 0 for g in gradients]
        self._before = [x.detach().clone() for x in variables]

    def direction(self, i: int) -> Tensor:
        x = self.variables[i]
        direction = _random(x, self._seed, i).mul_(self._sizes[i])
        mask = self._masks[i] if i < len(self._masks) else None
        return direction if mask is None else direction.mul_(mask)

    def to(self, step: float) -> None:
        """From where they were at first; 0 is there, exactly."""
        with torch.no_grad():
            for i, (x, before) in enumerate(zip(self.variables, self._before, strict=True)):
                x.copy_(before)
                if step:
                    x.add_(self.direction(i).to(x.dtype), alpha=step)


def _mixed(change: Sequence[Tensor], size: float, seed: int) -> list[Tensor]:
    """Half of each, of norm 1 each."""
    count = sum(c.numel() for c in change)
    return [c / (size or 1.0) + _random(c, seed, i) / math.sqrt(count) for i, c in enumerate(change)]


def _random(like: Tensor, seed: int, i: int) -> Tensor:
    """Normal numbers of a tensor's shape, the same ones for the same ``seed`` and place ``i``."""
    generator = torch.Generator().manual_seed(mix(mix(seed) ^ i))
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _difference(gradients: Callable[[], Vectors], moves: _Moves, step: float) -> list[Tensor]:
    """The gradients' derivative along ``moves``, by a central difference in float64."""
    moves.to(step)
    plus = [None if g is None else g.detach().to(torch.float64, copy=True) for g in gradients()]
    moves.to(-step)
    minus = gradients()
    moves.to(0.0)
    return [
        torch.zeros_like(x, dtype=torch.float64, requires_grad=False)
        if a is None or b is None
        else a.sub_(b.detach()).div_(2 * step)
        for a, b, x in zip(plus, minus, moves.variables, strict=False)
    ]
