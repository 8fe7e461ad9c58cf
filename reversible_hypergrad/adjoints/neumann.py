"""The implicit gradient by a Neumann series."""

from collections.abc import Callable

from torch import Tensor

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.implicit import ImplicitRun
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Problem

__all__ = ["Neumann"]


class Neumann(Adjoint):
    """Differentiates the minimum instead of the run, its Hessian inverted by a Neumann series. APPROXIMATE: unless converged.

    ``u = P * sum over i < terms of (I - H P)^i c`` with P the learning rates: what ``terms`` more steps of gradient descent
    at the trained weights would give. Uses the training loss of the last step. Gradients by learning rates, momenta,
    dampening and initial weights are zero, since a minimum does not depend on them. Momentum 0 and Nesterov are allowed.

    Args:
        terms: how many of the series, at least 1; each but the first takes a Hessian-vector product.
        lr: step size of the series, above 0 and below 2 / the largest curvature; None takes the learning rates of the last step.

    Cost: one graph of the loss and ``terms`` products, whatever the number of steps.

    *Recommended* for penalties and other terms of the loss, with full batches and a converged inner problem. *Not recommended*
    with early stopping or minibatches: on the task of bench.tradeoff its relative error is 0.96 to 1.0.

    Raises:
        TypeError: if ``terms`` is no integer.
        ValueError: if ``terms`` is below 1 or ``lr`` not above 0; from ``backward`` if every learning rate of the last step is 0.

    >>> import reversible_hypergrad as rh
    >>> rh.Neumann(terms=50).approximation
    'the trained weights count as a minimum of the last training loss'

    Source: Lorraine, Vicol, Duvenaud, *Optimizing Millions of Hyperparameters by Implicit Differentiation*, AISTATS 2020.
    """

    exact = False
    approximation = "the trained weights count as a minimum of the last training loss"

    def __init__(self, terms: int, lr: float | None = None) -> None:
        check_integer("terms", terms, least=1)
        if lr is not None and not lr > 0:
            raise ValueError(f"lr: expected a number > 0 or None, got {lr!r}")
        self.terms, self.lr = terms, lr

    def __repr__(self) -> str:
        return f"Neumann(terms={self.terms}, lr={self.lr})"

    def start(self, problem: Problem) -> Run:
        return NeumannRun(self, problem)


class NeumannRun(ImplicitRun):
    def __init__(self, adjoint: Neumann, problem: Problem) -> None:
        super().__init__(problem)
        self.adjoint = adjoint

    def _rates(self) -> list[Tensor]:
        own, step = self.adjoint.lr, self.problem.steps[-1]
        if own is None and "lr" not in self.problem.rule.settings:
            raise ValueError(
                "adjoint: Neumann takes the learning rates as its step size, and "
                f"{type(self.problem.rule).__name__} has none. Pass Neumann(terms, lr=...)"
            )
        rates = [group.vector() for group in self.groups]
        for group, vector in zip(self.groups, rates, strict=True):
            for span in group.spans:
                span.of(vector)[:] = span.h(step).lr if own is None else own
        if not any(bool(vector.any()) for vector in rates):
            raise ValueError(
                "adjoint: Neumann takes the last step's learning rates as its step size, and they are all 0. Pass "
                "Neumann(terms, lr=...)"
            )
        return rates

    def solve(self, hessian: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor]) -> list[Tensor]:
        rates = self._rates()
        terms = right
        total = [t.clone() for t in terms]
        for _ in range(self.adjoint.terms - 1):
            changes = hessian([p * t for p, t in zip(rates, terms, strict=True)])
            terms = [t - change for t, change in zip(terms, changes, strict=True)]
            for sum_, t in zip(total, terms, strict=True):
                sum_ += t
        return [p * t for p, t in zip(rates, total, strict=True)]
