"""What the implicit function theorem says at the trained weights: the part that Neumann and ConjugateGradient share."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.float_run import FloatRun
from reversible_hypergrad.problem.problem import Cotangents, Problem

__all__ = ["ImplicitRun"]


class ImplicitRun(FloatRun):
    """Solves H u = c at the trained weights, with the last step's training loss; hypergradients are then -M'u.

    H and M are the derivatives of the gradient, weight decay included, by the weights and by the hyperparameters, and c is the
    gradient by the trained weights. A fixed point does not depend on learning rates, momenta, dampening or initial weights:
    their gradients are zero.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if problem.steps < 1:
            raise ValueError("steps: expected at least one step for an implicit gradient, whose training loss is the last one's")

    def keep(self, step: int) -> None:
        pass

    def restore(self, step: int) -> None:
        raise AssertionError("an implicit gradient is taken at the end only")

    @abstractmethod
    def solve(self, hessian: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor]) -> list[Tensor]:
        """u of H u = right. Lists of vectors, one per group."""

    def walk_back(self, cotangents: Sequence[Tensor | None]) -> Cotangents:
        problem, groups, step = self.problem, self.groups, self.problem.steps - 1
        evaluation = problem.gradient(step)

        def products(us: list[Tensor], totals: Cotangents, keep: bool) -> list[Tensor]:
            directions: list[Tensor] = [torch.empty(0)] * len(problem.weights)
            for group, u in zip(groups, us, strict=True):
                group.scatter(u, directions)
            by_weights, by_hyperparameters = evaluation.products(directions, keep=keep)
            results = [group.gather(by_weights) for group in groups]
            for group, result, u in zip(groups, results, us, strict=True):
                group.through_decay(step, result, u, totals)
            totals.add_hyperparameters(by_hyperparameters)
            return results

        unused = Cotangents.zeros(problem)
        u = self.solve(lambda us: products(us, unused, True), [group.gather(cotangents) for group in groups])
        totals = Cotangents.zeros(problem)
        products([-x for x in u], totals, False)
        totals.initial = [torch.zeros_like(weight, requires_grad=False) for weight in problem.weights]
        return totals
