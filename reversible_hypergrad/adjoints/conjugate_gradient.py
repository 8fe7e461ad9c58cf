"""The implicit gradient by conjugate gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.implicit import ImplicitRun
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Problem

__all__ = ["ConjugateGradient"]


class ConjugateGradient(Adjoint):
    """Differentiates the minimum instead of the run, its Hessian inverted by conjugate gradients. APPROXIMATE: unless converged.

    Uses the training loss of the last step. Gradients by learning rates, momenta, dampening and initial weights are zero,
    since a minimum does not depend on them. Momentum 0 and Nesterov are allowed.

    Args:
        iterations: the most Hessian-vector products, at least 1.
        tolerance: stop when the norm of the residual is below this times that of the right side; at least 0.

    Cost: one graph of the loss and up to ``iterations`` products, whatever the number of steps.

    *Recommended* for penalties and other terms of the loss, with full batches, a converged and strictly convex inner problem.
    *Not recommended* with early stopping, minibatches or networks, whose Hessians have negative eigenvalues: an error then.

    Raises:
        TypeError: if ``iterations`` is no integer.
        ValueError: if ``iterations`` is below 1, or ``tolerance`` below 0.
        ArithmeticError: from ``backward``, where the Hessian is not positive definite.

    >>> import reversible_hypergrad as rh
    >>> rh.ConjugateGradient(iterations=20)
    ConjugateGradient(iterations=20, tolerance=1e-06)

    Source: Pedregosa, *Hyperparameter Optimization with Approximate Gradient*, ICML 2016; Rajeswaran, Finn, Kakade, Levine,
    *Meta-Learning with Implicit Gradients*, NeurIPS 2019.
    """

    exact = False
    approximation = "the trained weights count as a minimum of the last training loss"

    def __init__(self, iterations: int, tolerance: float = 1e-6) -> None:
        check_integer("iterations", iterations, least=1)
        if not tolerance >= 0:
            raise ValueError(f"tolerance: expected a number >= 0, got {tolerance!r}")
        self.iterations, self.tolerance = iterations, tolerance

    def __repr__(self) -> str:
        return f"ConjugateGradient(iterations={self.iterations}, tolerance={self.tolerance})"

    def start(self, problem: Problem) -> Run:
        return ConjugateGradientRun(self, problem)


class ConjugateGradientRun(ImplicitRun):
    def __init__(self, adjoint: ConjugateGradient, problem: Problem) -> None:
        super().__init__(problem)
        self.adjoint = adjoint

    def solve(self, hessian: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor]) -> list[Tensor]:
        found = [torch.zeros_like(r) for r in right]
        residual = [r.clone() for r in right]
        direction = [r.clone() for r in right]
        square = _dot(residual, residual)
        enough = self.adjoint.tolerance**2 * square
        for _ in range(self.adjoint.iterations):
            if square <= enough:
                break
            image = hessian(direction)
            curvature = _dot(direction, image)
            if not curvature > 0:
                raise ArithmeticError(
                    "adjoint: ConjugateGradient needs a positive definite Hessian of the training loss at the trained weights "
                    f"and met a direction of curvature {curvature / _dot(direction, direction):.3g}. Add weight decay, train "
                    "longer, or use an exact strategy such as rh.Reversible()"
                )
            length = square / curvature
            for f, r, d, i in zip(found, residual, direction, image, strict=True):
                f.add_(d, alpha=length)
                r.add_(i, alpha=-length)
            before, square = square, _dot(residual, residual)
            for r, d in zip(residual, direction, strict=True):
                d.mul_(square / before).add_(r)
        return found


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float(torch.dot(x.double(), y.double())) for x, y in zip(a, b, strict=True))
