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
    is within bounds is the last, since a kink may be crossed in one. NaN where something is not finite.

    Args:
        gradients: at the present values of ``variables``; None stands for zero.
        products: directions, shaped as the gradients, times the gradients' derivatives by ``variables``.
        variables: moved in place, and back up to rounding.
        seed: of the directions.

    Cost: three gradients and one product per try. Memory: beside what these take, one direction.
    """
    precision = torch.float64 if any(x.dtype == torch.float64 for x in variables) else torch.float32
    sizes = [x.detach().double().square().mean().sqrt().item() + 1e-3 if x.numel() else 1.0 for x in variables]
    least = math.inf
    for k, step in enumerate(_STEPS[precision]):
        v = 2 * k + mix(seed)
        change = _difference(gradients, variables, v, sizes, step)
        size = math.sqrt(sum(float(c.square().sum()) for c in change))
        u = _mixed(change, size, v + 1)
        expected = sum(float((a * b).sum()) for a, b in zip(u, change, strict=True))
        del change
        found = products([a.to(x.dtype) for a, x in zip(u, variables, strict=False)])
        analytic = sum(
            float((p.detach().double() * _random(x, v, i)).sum()) * size
            for i, (p, x, size) in enumerate(zip(found, variables, sizes, strict=True))
            if p is not None
        )
        if not math.isfinite(size + analytic):
            return math.nan
        least = min(least, abs(analytic - expected) / (size or 1.0))
        if least <= BOUND[precision]:
            break
    return least


def _mixed(change: Sequence[Tensor], size: float, seed: int) -> list[Tensor]:
    """Half of each, of norm 1 each."""
    count = sum(c.numel() for c in change)
    return [c / (size or 1.0) + _random(c, seed, i) / math.sqrt(count) for i, c in enumerate(change)]


def _random(like: Tensor, seed: int, i: int) -> Tensor:
    """Normal numbers of a tensor's shape, the same ones for the same ``seed`` and place ``i``."""
    generator = torch.Generator().manual_seed(mix(mix(seed) ^ i))
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _difference(
    gradients: Callable[[], Vectors], variables: Sequence[Tensor], v: int, sizes: Sequence[float], step: float
) -> list[Tensor]:
    """The gradients' derivative along the directions of seed ``v``, by a central difference in float64."""

    def move(by: float) -> None:
        with torch.no_grad():
            for i, (x, size) in enumerate(zip(variables, sizes, strict=True)):
                x.add_(_random(x, v, i).to(x.dtype), alpha=by * size)

    move(step)
    plus = [None if g is None else g.detach().to(torch.float64, copy=True) for g in gradients()]
    move(-2 * step)
    minus = gradients()
    move(step)
    return [
        torch.zeros_like(x, dtype=torch.float64, requires_grad=False)
        if a is None or b is None
        else a.sub_(b.detach()).div_(2 * step)
        for a, b, x in zip(plus, minus, variables, strict=False)
    ]
