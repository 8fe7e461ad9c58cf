"""Training in plain floats, and the walk back over weights that a strategy brings back."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import CAUSES, End, Run, states_of
from reversible_hypergrad.adjoints.float_adjoint import FloatAdjoint
from reversible_hypergrad.adjoints.floats import FloatGroup, FloatState, float_groups, needs_states
from reversible_hypergrad.adjoints.norms import AdjointNorms
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.reversible.lateness import LOOK_EVERY

__all__ = ["FloatRun"]


class FloatRun(Run):
    """What the strategies with plain float states share. One of them says what to keep, and how to get a step's weights back.

    The loss of every step is kept (8 bytes) and compared, bit for bit, when the step is evaluated again on the way back.

    Args:
        problem: what is trained.
    """

    replays = True  # whether the walk back sees the very weights of training

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.groups: list[FloatGroup] = []
        self.begin: list[FloatState] = []  # per group, to start once more from
        self.with_states = False
        self._losses = torch.empty(0)
        self._first_losses: Tensor | None = None  # of the run whose weights went out
        self._at_end = False
        self._undone = False
        self._is_between = False

    @abstractmethod
    def keep(self, step: int) -> None:
        """Called before each step of training."""

    @abstractmethod
    def restore(self, step: int) -> None:
        """Brings the groups back to before ``step``; states too ``with_states``. Steps come in descending order."""

    def let_go(self) -> None:
        """Forgets what was kept."""

    def forward(self, record: bool) -> None:
        problem = self.problem
        self.groups = float_groups(problem)
        self.with_states = needs_states(problem)
        self.begin = [group.state(with_states=not group.is_fresh) for group in self.groups]
        readouts, self._undone = problem.readouts, False
        if readouts is not None and problem.sees_start:
            readouts.begin(problem.steps.start)
        self._losses = torch.empty(len(problem.steps), dtype=torch.float64, device=self.groups[0].device)
        try:
            with problem.progress("training", len(problem.steps)) as bar:
                for step in problem.steps:
                    if record:
                        self.keep(step)
                    self.train(step)
                    if readouts is not None:
                        readouts.see(step + 1)
                    if self._place(step) % LOOK_EVERY == LOOK_EVERY - 1 or step == problem.steps[-1]:
                        self._refuse_non_finite(step)
                    bar.advance()
            problem.report.weights_below_eps = sum(group.weights_below_eps() for group in self.groups)
            self._at_end = record
        except BaseException:
            self._rewind()
            raise
        if not record:
            self.let_go()
            self.begin, self._losses = [], torch.empty(0)

    def end(self) -> End | None:
        if not self.groups or self._undone:
            return None
        return End(states_of(self.groups))

    def train(self, step: int) -> None:
        gradient = self.problem.gradient
        loss, gradients = gradient.values(gradient.batch(step))
        self._losses[self._place(step)] = loss
        for group in self.groups:
            group.step(step, gradients)

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        if self._is_between:
            raise ReversalError(
                "an earlier backward through this run was interrupted before the run was back at its initial weights, so it "
                "cannot go on. Call rh.train again"
            )
        self._is_between = True
        try:
            if not self._at_end:
                self.problem.gradient.restart()
                self.forward(record=True)
            self._compare_runs()
            self._undone = True
            return self.walk_back(downstream)
        finally:
            with Uninterrupted():
                self._rewind()
                self._is_between = False

    def walk_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        problem = self.problem
        losses = [_OfLoss(problem, self.groups, one) for one in downstream]
        norms = AdjointNorms(losses[0].vectors, problem.steps)
        again = self._losses.clone()
        steps = problem.steps
        with problem.progress("differentiating", len(steps)) as bar:
            for step in reversed(steps):
                self._read(step + 1, losses)
                norms.note(step + 1)
                self.restore(step)
                again[self._place(step)] = self._differentiate(step, losses)
                bar.advance()
        if self.replays:
            self._compare(again)
        if problem.sees_start:
            self._read(steps.start, losses)
        norms.note(steps.start)
        norms.finish(problem.report)
        return [loss.result(self.groups) for loss in losses]

    def _place(self, step: int) -> int:
        """Of what is kept of ``step``."""
        return step - self.problem.steps.start

    def _differentiate(self, step: int, losses: Sequence["_OfLoss"]) -> Tensor:
        """The adjoint of one step, from the state before it. Returns its loss. Gradients and products die here, not later:
        training again between two steps must not find them in memory."""
        evaluation = self.problem.gradient(step)
        for loss in losses:
            loss.pull(step, evaluation, last=loss is losses[-1])
        return evaluation.value

    def _read(self, taken: int, losses: Sequence["_OfLoss"]) -> None:
        readouts = self.problem.readouts
        if readouts is not None:
            readouts.pull(
                taken, [loss.downstream for loss in losses], [loss.views for loss in losses], [loss.totals for loss in losses]
            )

    def load(self, states: Sequence[FloatState]) -> None:
        for group, state in zip(self.groups, states, strict=True):
            group.load(state)

    def _compare_runs(self) -> None:
        """Training once more must not go another way, or the gradient belongs to other weights than those that went out."""
        if self._first_losses is None:
            self._first_losses = self._losses
        place = _first_difference(self._first_losses, self._losses)
        if place is not None:
            raise ReversalError(
                "training once more, for a second backward, did not end at the same weights: the loss of step "
                f"{self.problem.steps[place]} was {self._first_losses[place].item():.9g} and is {self._losses[place].item():.9g} "
                f"now, and no gradient has been changed. {CAUSES}"
            )

    def _compare(self, again: Tensor) -> None:
        place = _first_difference(again, self._losses)
        report = self.problem.report
        report.checks += len(self.problem.steps)
        if place is None:
            report.restored = True
            return
        step = self.problem.steps[place]
        seen = self.problem.gradient.diagnose(step)
        raise ReversalError(
            f"step {step}: its loss was {self._losses[place].item():.9g} in training and {again[place].item():.9g} on the way "
            "back, so the weights there, or the loss, are not those of training, and no gradient has been changed. "
            f"{seen + '. ' if seen else ''}{CAUSES}"
        )

    def _refuse_non_finite(self, step: int) -> None:
        steps = self.problem.steps
        since = max(steps.start, step + 1 - LOOK_EVERY)
        bad = (~self._losses[self._place(since) : self._place(step) + 1].isfinite()).nonzero()
        if len(bad):
            at = since + int(bad[0])
            loss = self._losses[self._place(at)].item()
            raise FloatingPointError(
                f"step {at}: the loss is {loss}, expected a finite number. Lower lr, or look for the first "
                "step whose gradient is not finite before it"
            )
        if step == steps[-1]:
            names = [n for n, w in zip(self.problem.names, self.problem.weights, strict=True) if not bool(w.isfinite().all())]
            if names:
                raise FloatingPointError(
                    f"step {step}: {', '.join(names[:3])} is not finite after it, expected finite weights. Lower lr, or look for "
                    f"a gradient that is not finite in steps {since} to {step}"
                )

    def _rewind(self) -> None:
        """Back to the initial weights, as training once more, for a second backward, expects them."""
        self.load(self.begin)
        self._at_end = False
        self._free()

    def _free(self) -> None:
        self.let_go()
        self.groups, self.begin, self._losses = [], [], torch.empty(0)


def _first_difference(a: Tensor, b: Tensor) -> int | None:
    different = ((a != b) & ~(a.isnan() & b.isnan())).nonzero()
    return int(different[0]) if len(different) else None


class _OfLoss:
    """What one loss's gradients take on the way back."""

    def __init__(self, problem: Problem, groups: Sequence[FloatGroup], downstream: Downstream) -> None:
        self.downstream, self.totals = downstream, Cotangents(problem)
        self._adjoints = [FloatAdjoint(group, downstream, self.totals) for group in groups]
        self._directions: list[Tensor] = [torch.empty(0)] * len(problem.weights)
        self.views: list[Tensor] = [torch.empty(0)] * len(problem.weights)
        for group, adjoint in zip(groups, self._adjoints, strict=True):
            group.scatter(adjoint.aw, self.views)

    @property
    def vectors(self) -> list[Tensor]:
        """The gradient by the weights, per group."""
        return [adjoint.aw for adjoint in self._adjoints]

    def pull(self, step: int, evaluation: Evaluation, last: bool) -> None:
        """Back through ``step``. Keeps the evaluation's graph unless this loss is the ``last`` one."""
        for adjoint in self._adjoints:
            adjoint.pull(step, evaluation.gradients, self._directions)
        by_weights, by_hyperparameters = evaluation.products(self._directions, keep=not last)
        for adjoint in self._adjoints:
            adjoint.add(step, by_weights)
        self.totals.add_hyperparameters(by_hyperparameters)

    def result(self, groups: Sequence[FloatGroup]) -> Cotangents:
        """The gradients by the initial weights and states, from those before the first step."""
        totals = self.totals
        totals.initial = list(self.views)
        for group, adjoint in zip(groups, self._adjoints, strict=True):
            for i, m in enumerate(group.members):
                totals.initial[m] = group.view(adjoint.aw.to(group.w.dtype), i)
                totals.states[m] = {name: group.view(vector, i) for name, vector in adjoint.az.items()}
        return totals
