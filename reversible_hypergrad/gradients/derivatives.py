"""Second derivatives, as torch computes them, beside differences of the gradient."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["BOUND", "STEP", "disagreement"]

# Of a difference, in units of the variables' size. In float64 rounding makes an error of some 1e-16 / 1e-8 times |g| / |H v|,
# while so small a step hardly ever crosses a kink, as those of ReLU. In float32 the step balances rounding with curvature.
STEP = {torch.float64: 1e-8, torch.float32: 4e-3}
# What is above is wrong: errors of formulas are of the order of the derivative itself, though random directions share them among
# their dimensions. In float32 a step may cross kinks, which ReLU has been seen to make 0.07 of: gross errors alone are found.
BOUND = {torch.float64: 1e-4, torch.float32: 0.1}
_TRIES = 2  # a kink may be crossed in one

Vectors = Sequence[Tensor | None]


def disagreement(
    gradients: Callable[[], Vectors], products: Callable[[Sequence[Tensor]], Vectors], variables: Sequence[Tensor], seed: int
) -> float:
    """How far apart they are along random directions: |<H u, v> - <u, dg/dv>| in units of |u| |dg/dv|, the smaller of two tries.

    Args:
        gradients: at the present values of ``variables``; None stands for zero.
        products: directions, shaped as the gradients, times the gradients' derivatives by ``variables``.
        variables: moved in place meanwhile.
        seed: of the directions.
    """
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    precision = torch.float64 if any(x.dtype == torch.float64 for x in variables) else torch.float32
    found = []
    for _ in range(_TRIES):
        here = [None if g is None else g.detach().clone() for g in gradients()]
        u = [like(x) if g is None else like(g) for g, x in zip(here, variables, strict=False)]
        v = [like(x) * (x.detach().double().square().mean().sqrt().item() + 1e-3 if x.numel() else 1.0) for x in variables]
        analytic = _dot(products(u), v)
        change = _difference(gradients, variables, v, STEP[precision])
        size = math.sqrt(_dot(u, u) * _dot(change, change))
        found.append(abs(analytic - _dot(u, change)) / size if size else abs(analytic))
    return min(found)


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
