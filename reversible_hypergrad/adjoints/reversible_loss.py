"""One loss's gradients on their way back through a run in fixed point."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.reversible.group import ReversibleGroup
from reversible_hypergrad.reversible.pull_back import ProgramPullBack, PullBack
from reversible_hypergrad.reversible.rule_pull_back import RulePullBack

__all__ = ["ReversibleLoss"]


class ReversibleLoss:
    """What one loss's gradients take on the way back."""

    def __init__(self, problem: Problem, groups: Sequence[ReversibleGroup], downstream: Downstream) -> None:
        self.downstream, self.totals = downstream, Cotangents(problem)
        self.adjoints: list[PullBack] = [
            (ProgramPullBack if group.rule.program else RulePullBack)(problem.under(group.rule), group, downstream, self.totals)
            for group in groups
        ]
        self.views: list[Tensor] = [torch.empty(0)] * len(problem.weights)
        for adjoint in self.adjoints:
            adjoint.views(self.views)
        self.directions: list[Tensor] = [torch.empty(0)] * len(problem.weights)

    def multiply(self, evaluation: Evaluation, last: bool) -> None:
        """The directions times the second derivatives. They are kept until the step before, so unless this loss is the ``last``
        one they are copied: the next products may be written over them."""
        by_weights, by_hyperparameters = evaluation.products(self.directions, keep=not last)
        self.totals.add_hyperparameters(by_hyperparameters)
        if not last:
            by_weights = [None if product is None else product.clone() for product in by_weights]
        vectors = [vector for adjoint in self.adjoints for vector in adjoint.vectors]
        for adjoint in self.adjoints:
            adjoint.add(by_weights, vectors)

    def result(self, problem: Problem) -> Cotangents:
        self.totals.initial = [view.to(w.dtype, copy=True) for view, w in zip(self.views, problem.weights, strict=True)]
        self.totals.states = [{} for _ in problem.weights]
        for adjoint in self.adjoints:
            for m, own in zip(adjoint.group.members, adjoint.by_states(), strict=True):
                self.totals.states[m] = own
        return self.totals
