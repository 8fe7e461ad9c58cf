"""A training run in fixed point, undone bit for bit."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import CAUSES, End, Run, states_of
from reversible_hypergrad.adjoints.cost import RunSize
from reversible_hypergrad.adjoints.norms import AdjointNorms
from reversible_hypergrad.adjoints.per_step import PerStep
from reversible_hypergrad.adjoints.reversible_loss import ReversibleLoss
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.readouts import Readouts
from reversible_hypergrad.reversible.group import ReversibleGroup, reversible_groups
from reversible_hypergrad.reversible.lateness import Lookout
from reversible_hypergrad.reversible.outcome import Outcome, hash_of
from reversible_hypergrad.reversible.refusal import refusal

__all__ = ["ReversibleRun"]


class Options(Protocol):
    """What a run takes from :class:`Reversible`."""

    state_bits: int | None
    verify_every: int
    buffer: str | Path

    def starts(self, bits_per_step: PerStep, state_bytes: float) -> list[int]: ...


class ReversibleRun(Run):
    def __init__(self, adjoint: Options, problem: Problem) -> None:
        self.adjoint = adjoint
        self.problem = problem
        self.groups: list[ReversibleGroup] = []
        self.starts: list[int] = [problem.steps.start]
        self.failure: str | None = None
        self.ends: dict[int, list[int]] = {}  # step -> hashes of the state before it, where segments meet and at the end
        self.begin: list[Tensor] = []  # the initial weights, where they must be trained from again
        self.at_end = False  # the groups hold the trained state and all that undoing needs
        self.undone = False  # they hold another one
        self.verified = 0  # on the way back: the state before this step is known to be right

    def forward(self, record: bool) -> None:
        problem, adjoint = self.problem, self.adjoint
        self.groups = reversible_groups(problem, adjoint.state_bits, adjoint.verify_every, adjoint.buffer)
        bits = RunSize.of(problem).information_bits
        problem.report.limit_bits = bits.until(bits.steps) / max(problem.report.weights * len(problem.steps), 1)
        problem.report.state_bytes = sum(group.state.nbytes for group in self.groups)
        if record and self._directions_are_known():
            problem.gradient.expect_along()
        begin = problem.steps.start
        self.starts = [begin + start for start in adjoint.starts(bits, problem.report.state_bytes)]
        if record and len(self.starts) > 1:
            self.begin = [weight.detach().clone() for weight in problem.weights]
        if problem.readouts is not None and problem.sees_start:
            problem.readouts.begin(begin)
        try:
            with problem.progress("training", len(problem.steps)) as bar:
                for first, end in pairwise([*self.starts, problem.steps.stop]):
                    last = end == problem.steps.stop
                    if first > begin:
                        self._meet(first)
                    if record and first > begin and not last:
                        self._keep_state()
                    self._train(first, end, record and last, bar, problem.readouts)
            self._meet(problem.steps.stop)
            problem.report.weights_below_eps = sum(group.weights_below_eps() for group in self.groups)
        except BaseException:
            self._let_go()
            raise
        self.at_end, self.undone = record, False

    def _directions_are_known(self) -> bool:
        """Whether on the way back directions will be known before the gradient is: with SGD. Read off the last step."""
        last = self.problem.steps[-1:]
        return bool(last) and all(
            group.rule.program and group.rule.direction_is_state(h)
            for group in self.groups
            for h in group.step_settings.at(last[0]).settings
        )

    def end(self) -> End | None:
        if not self.groups or self.undone:
            return None
        return End(states_of(self.groups), [group.freeze() for group in self.groups])

    def _meet(self, step: int) -> None:
        """Where a segment ends, and a new one begins."""
        self._compare(step)
        if step < self.problem.steps.stop:
            for group in self.groups:
                group.begin_segment(step)

    def _compare(self, step: int) -> None:
        hashes = [group.state.hash() for group in self.groups]
        if self.ends.setdefault(step, hashes) != hashes:
            raise ReversalError(
                f"training once more did not come to the same weights as before at step {step}, so there is no exact "
                f"hypergradient, and no gradient has been changed. {CAUSES}"
            )

    def _keep_state(self) -> None:
        for group in self.groups:
            group.push_state()
        report = self.problem.report
        report.kept_bytes = max(report.kept_bytes, sum(group.store.nbytes for group in self.groups))

    def _train(self, first: int, end: int, record: bool, bar: Any, readouts: Readouts | None = None) -> None:
        problem = self.problem
        kept = sum(group.store.nbytes for group in self.groups)
        with Lookout(self._check_step, self._make_room) as lookout:
            for step in range(first, end):
                _, gradients = problem.gradient.alone(problem.gradient.batch(step))
                lookout.add(step, self._step(step, gradients, record), gradients)
                if readouts is not None:
                    readouts.see(step + 1)
                bar.advance(self._bits(step + 1 - first, kept) if bar.wants_text else "")
        for group in self.groups:
            group.store.flush()
        if record:
            report = problem.report
            information = sum(group.information_bytes() for group in self.groups) - kept
            report.information_bytes = max(report.information_bytes, information)
            report.information_bits = 8 * report.information_bytes / max(report.weights * len(problem.steps), 1)
            report.log_bytes = max(report.log_bytes, sum(group.log_bytes() for group in self.groups))

    def _step(self, step: int, gradients: Sequence[Tensor], record: bool) -> list[Outcome]:
        try:
            return [group.step(step, gradients, record) for group in self.groups]
        except ArithmeticError as error:
            raise type(error)(f"step {step}: {error}") from None

    def _check_step(
        self, step: int, outcomes: Sequence[Outcome], expected: Sequence[int | None], gradients: Sequence[Tensor] | None
    ) -> None:
        error = refusal([group.state for group in self.groups], None, outcomes)
        if error is not None:
            raise type(error)(f"step {step}: {error}")

    def _make_room(self, steps: Sequence[Sequence[Outcome]]) -> None:
        for group, outcomes in zip(self.groups, zip(*steps, strict=True), strict=True):
            group.state.make_room(*outcomes)

    def _train_again(self, first: int, end: int) -> None:
        """The segment before the one that has just been undone, recorded this time."""
        problem = self.problem
        begin = problem.steps.start
        if first == begin:
            with torch.no_grad():
                for weight, initial in zip(problem.weights, self.begin, strict=True):
                    weight.copy_(initial)
            self.begin = []
        for group in self.groups:
            if first == begin:
                group.begin_again()
            else:
                group.pop_state()
                group.begin_segment(first)
        with problem.progress("training again", end - first) as bar:
            self._train(first, end, True, bar)
        problem.report.steps_again += end - first
        self._compare(end)

    def _let_go(self) -> None:
        for group in self.groups:
            group.store.close()
        self.groups, self.begin = [], []

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        if self.failure is not None:
            raise ReversalError(
                f"an earlier backward through this run failed, so it cannot be undone any more: {self.failure}. Call rh.train "
                "again"
            )
        self.failure = "it was interrupted"
        try:
            if not self.at_end:
                # An earlier backward has undone the run; its end was checked to be the very start.
                self.problem.gradient.restart()
                self.forward(record=True)
            self.undone = True
            result = self._undo(downstream)
        except BaseException as error:
            self.failure = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise
        finally:
            self.at_end = False
            self._let_go()
        self.failure = None
        return result

    def _undo(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        problem = self.problem
        losses = [ReversibleLoss(problem, self.groups, one) for one in downstream]
        norms = AdjointNorms([adjoint.aw for adjoint in losses[0].adjoints], problem.steps)
        with problem.progress("undoing", len(problem.steps)) as bar:
            for first, end in reversed(list(pairwise([*self.starts, problem.steps.stop]))):
                if end < problem.steps.stop:
                    self._train_again(first, end)
                self._undo_segment(first, end, losses, norms, bar)
        problem.report.restored = True
        for loss in losses:
            for adjoint in loss.adjoints:
                adjoint.finish()
        if problem.sees_start:
            self._read(problem.steps.start, losses)
        norms.note(problem.steps.start)
        norms.finish(problem.report)
        return [loss.result(problem) for loss in losses]

    def _undo_segment(self, first: int, end: int, losses: Sequence[ReversibleLoss], norms: AdjointNorms, bar: Any) -> None:
        self.verified = end
        with Lookout(self._check_undone) as lookout:
            for step in reversed(range(first, end)):
                self._undo_step(step, lookout, losses, norms)
                bar.advance(f"exact back to step {self.verified}" if bar.wants_text else "")

    def _undo_step(self, step: int, lookout: Lookout, losses: Sequence[ReversibleLoss], norms: AdjointNorms) -> None:
        """One step back, and its adjoint. The first loss takes the integers along."""
        self._read(step + 1, losses)
        leading, *others = losses
        undoing = [adjoint.undo_weights(step) for adjoint in leading.adjoints]
        norms.note(step + 1)  # now that the products of the step after it have entered
        records = [record for record, _ in undoing]
        for loss in others:
            for adjoint, record in zip(loss.adjoints, records, strict=True):
                adjoint.pull_weights(step, record)
        evaluation = self._evaluate(step, losses)
        gradients = evaluation.gradients
        states = [
            adjoint.undo_states(step, record, gradients, leading.directions)
            for adjoint, record in zip(leading.adjoints, records, strict=True)
        ]
        for loss in others:
            for adjoint, record in zip(loss.adjoints, records, strict=True):
                adjoint.pull_states(step, record, gradients, loss.directions)
        for loss in losses:
            loss.multiply(evaluation, last=loss is losses[-1])
        outcomes = [*(weights for _, weights in undoing), *states]
        lookout.add(step, outcomes, gradients, [hash_of(record.hash_before) for record in records])

    def _evaluate(self, step: int, losses: Sequence[ReversibleLoss]) -> Evaluation:
        """Along the directions, if they are known before the gradient is."""
        gradient, (leading, *others) = self.problem.gradient, losses
        if not others and all(adjoint.known_directions(leading.directions) for adjoint in leading.adjoints):
            return gradient.along(gradient.batch(step), leading.directions)
        return gradient(step)

    def _read(self, taken: int, losses: Sequence[ReversibleLoss]) -> None:
        readouts = self.problem.readouts
        if readouts is not None:
            readouts.pull(
                taken, [loss.downstream for loss in losses], [loss.views for loss in losses], [loss.totals for loss in losses]
            )

    def _check_undone(
        self, step: int, outcomes: Sequence[Outcome], expected: Sequence[int | None], gradients: Sequence[Tensor] | None
    ) -> None:
        count = len(self.groups)
        phases = zip(self.groups, outcomes[:count], outcomes[count:], expected, strict=True)
        suspects = [name for group, weights, states, hash_ in phases for name in group.suspects(step, weights, states, hash_)]
        if suspects:
            self._refuse(step, suspects)
        if None not in expected:
            self.verified = step
            self.problem.report.checks += 1

    def _refuse(self, step: int, suspects: list[str]) -> None:
        verified = self.verified
        where = f"step {step}" if verified == step + 1 else f"the steps {step} to {verified - 1}"
        if step == self.problem.steps.start and verified <= step + 1:
            where = f"step {step}, at the end of the way back"
        seen = self.problem.gradient.diagnose(step)
        raise ReversalError(
            f"undoing {where} did not restore the state before (near {', '.join(suspects[:3])}), so there is no exact "
            f"hypergradient, and no gradient has been changed. {seen + '. ' if seen else ''}{CAUSES}"
        )

    def _bits(self, steps: int, kept: int) -> str:
        information = sum(group.information_bytes() for group in self.groups) - kept
        weight_steps = self.problem.report.weights * steps
        return f"{8 * information / max(weight_steps, 1):.3f} bits/weight/step"
