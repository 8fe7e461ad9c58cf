"""What the implicit function theorem says at the trained weights: the part that Neumann and ConjugateGradient share."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.float_run import FloatRun
from reversible_hypergrad.adjoints.float_span import FloatSpan
from reversible_hypergrad.adjoints.floats import FloatGroup
from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem

__all__ = ["ImplicitRun"]


class ImplicitRun(FloatRun):
    """Solves H u = c at the trained weights, with the last step's training loss; hypergradients are then -M'u.

    H and M are the derivatives of the gradient, weight decay included, by the weights and by the hyperparameters, and c is the
    gradient by the trained weights. A fixed point does not depend on learning rates, momenta, dampening or initial weights:
    their gradients are zero.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if not problem.steps:
            raise ValueError("steps: expected at least one step for an implicit gradient, whose training loss is the last one's")
        if problem.readouts is not None:
            raise ValueError(
                "readouts: an implicit gradient knows the weights at the end alone. Use an exact strategy such as rh.Checkpoint()"
            )
        rule = problem.rule
        if not rule.elementwise or any("weight" in rule.factors(settings, problem.steps[:1]) for settings in problem.settings):
            raise ValueError(
                "adjoint: an implicit gradient expected an elementwise rule whose weights decay through their gradient alone, "
                f"got {rule!r}. Use an exact strategy such as rh.Checkpoint()"
            )

    def keep(self, step: int) -> None:
        pass

    def restore(self, step: int) -> None:
        raise AssertionError("an implicit gradient is taken at the end only")

    @abstractmethod
    def solve(self, hessian: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor]) -> list[Tensor]:
        """u of H u = right. Lists of vectors, one per group."""

    def walk_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        problem, groups = self.problem, self.groups
        if any(any(own.values()) for one in downstream for own in one.states):
            raise ValueError(
                "adjoint: an implicit gradient knows weights at a minimum, not the optimizer's states there, on which a loss "
                "depends. Use an exact strategy such as rh.Checkpoint(), or detach trained.state"
            )
        evaluation = problem.gradient(problem.steps[-1])
        for group in groups:
            group.gather_gradient(evaluation.gradients)
        penalties = [[_Penalty(group, span, problem.steps[-1]) for span in group.spans] for group in groups]
        return [self._solve(evaluation, penalties, one, last=one is downstream[-1]) for one in downstream]

    def _solve(
        self, evaluation: Evaluation, penalties: Sequence[Sequence["_Penalty"]], downstream: Downstream, last: bool
    ) -> Cotangents:
        problem, groups = self.problem, self.groups

        def products(us: list[Tensor], keep: bool) -> tuple[list[Tensor], Sequence[Tensor | None]]:
            directions: list[Tensor] = [torch.empty(0)] * len(problem.weights)
            for group, u in zip(groups, us, strict=True):
                group.scatter(u, directions)
            by_weights, by_hyperparameters = evaluation.products(directions, keep=keep)
            results = [group.gather(by_weights) for group in groups]
            for result, u, row in zip(results, us, penalties, strict=True):
                for penalty in row:
                    penalty.add_product(result, u)
            return results, by_hyperparameters

        u = self.solve(lambda us: products(us, True)[0], [group.gather(downstream.weights) for group in groups])
        u = [-x for x in u]
        totals = Cotangents(problem)
        totals.add_hyperparameters(products(u, not last)[1])
        for vector, row in zip(u, penalties, strict=True):
            for penalty in row:
                penalty.add_settings(vector, totals)
        totals.initial = [torch.zeros_like(weight, requires_grad=False) for weight in problem.weights]
        return totals


class _Penalty:
    """What the rule adds to the gradient of a span at the trained weights: d*w of its total gradient g + d*w.

    It is read off an increment f(g, w), the total gradient times a factor: d is the derivative of f by w over that by g, the
    other states held fixed.
    """

    def __init__(self, group: FloatGroup, span: FloatSpan, step: int) -> None:
        self._span, self._step = span, step
        rule, self._h = group.rule, span.attached(step)
        for name, spec in rule.settings.items():
            if spec.first is not None:  # it says how a minimum is approached, not where it is
                setattr(self._h, name, spec.first)
        g, w = (span.of(vector).to(group.dtype).requires_grad_() for vector in (group.g, group.w))
        z = {name: span.of(state).to(group.dtype) for name, state in group.z.items()}
        with torch.enable_grad():
            increments = {}
            for name, increment in rule.increments(self._h, step, g, w, z):
                increments[name] = increment
                z[name] = (z[name] + increment).detach()
        first = next((name for name, power in rule.states.items() if power == 1), next(reversed(increments)))
        self._f = increments[first]
        by_g, by_w = torch.autograd.grad(self._f, [g, w], torch.ones_like(g), allow_unused=True, retain_graph=True)
        self._by_g = torch.ones_like(g) if by_g is None else by_g
        self._d = None if by_w is None else (by_w / self._by_g).nan_to_num_(0.0, 0.0, 0.0)

    def add_product(self, onto: Tensor, u: Tensor) -> None:
        """Vectors: d*u."""
        if self._d is not None:
            self._span.of(onto).addcmul_(self._span.of(u), self._d)

    def add_settings(self, u: Tensor, totals: Cotangents) -> None:
        """<u, the derivative of d*w by settings>. Once."""
        leaves = {name: x for name, x in vars(self._h).items() if isinstance(x, Tensor) and x.requires_grad}
        if leaves:
            cotangent = (self._span.of(u) / self._by_g).nan_to_num_(0.0, 0.0, 0.0)
            found = torch.autograd.grad(self._f, list(leaves.values()), cotangent, allow_unused=True, retain_graph=True)
            present = {name: by for name, by in zip(leaves, found, strict=True) if by is not None}
            self._span.add_to(totals, self._step, present)
