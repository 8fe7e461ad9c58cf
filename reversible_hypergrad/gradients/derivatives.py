"""Second derivatives, as torch computes them, beside differences of the gradient."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["BOUND", "disagreement"]

# Of a difference, in units of the variables' size, one for each try. In float64 rounding makes an error of some 1e-16 / step
# times |g| / |H v|, while so small a step hardly ever crosses a kink, as those of ReLU, of which there is one per activation; and
# the next try is made with a smaller one. In float32 the step balances rounding with curvature.
_STEPS = {torch.float64: (1e-8, 1e-9, 1e-10), torch.float32: (4e-3, 4e-3)}
# What is above is wrong: errors of formulas are of the order of the derivative itself, though random directions share them among
# their dimensions. In float32 a step may cross kinks, which ReLU has been seen to make 0.07 of: gross errors alone are found.
BOUND = {torch.float64: 1e-4, torch.float32: 0.1}

Vectors = Sequence[Tensor | None]


def disagreement(
    gradients: Callable[[], Vectors], products: Callable[[Sequence[Tensor]], Vectors], variables: Sequence[Tensor], seed: int
) -> float:
    """How far apart they are along random directions: |<H u, v> - <u, dg/dv>| in units of |u| |dg/dv|.

    It is the smallest of up to three tries, of which the first one that is within bounds is the last, since a kink may be crossed
    in one. NaN where something is not finite.

    Args:
        gradients: at the present values of ``variables``; None stands for zero.
        products: directions, shaped as the gradients, times the gradients' derivatives by ``variables``.
        variables: moved in place meanwhile.
        seed: of the directions.

    Cost: three gradients and one product per try. Memory: four copies of the gradients and two of the variables.
    """
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    precision = torch.float64 if any(x.dtype == torch.float64 for x in variables) else torch.float32
    least = math.inf
    for step in _STEPS[precision]:
        u = [like(x) if g is None else like(g) for g, x in zip(gradients(), variables, strict=False)]
        v = [like(x) * (x.detach().double().square().mean().sqrt().item() + 1e-3 if x.numel() else 1.0) for x in variables]
        analytic = _dot(products(u), v)
        change = _difference(gradients, variables, v, step)
        size = math.sqrt(_dot(u, u) * _dot(change, change))
        if not math.isfinite(size + analytic):
            return math.nan
        least = min(least, abs(analytic - _dot(u, change)) / size if size else abs(analytic))
        if least <= BOUND[precision]:
            break
    return least


def _difference(
    gradients: Callable[[], Vectors], variables: Sequence[Tensor], v: Sequence[Tensor], step: float
) -> list[Tensor | None]:
    """The gradients' derivative along ``v``, by a central difference. The variables are as they were afterwards."""
    before = [x.detach().clone() for x in variables]
    sides = []
    try:
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for x, start, direction in zip(variables, before, v, strict=True):
                    x.copy_(start + sign * step * direction)
            sides.append([None if g is None else g.detach().double().clone() for g in gradients()])
    finally:
        with torch.no_grad():
            for x, start in zip(variables, before, strict=True):
                x.copy_(start)
    return [None if a is None or b is None else (a - b) / (2 * step) for a, b in zip(*sides, strict=True)]


def _dot(a: Vectors, b: Vectors) -> float:
    return sum(
        float((x.detach().double() * y.detach().double()).sum())
        for x, y in zip(a, b, strict=False)
        if x is not None and y is not None
    )
