"""Exact reversal: undo the steps instead of keeping the trajectory."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import CAUSES, Adjoint, Run
from reversible_hypergrad.core.rational import information_limit
from reversible_hypergrad.engine.complaint import complaint
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.inner.fixed import FixedGroup, fixed_groups
from reversible_hypergrad.inner.problem import Cotangents, Problem
from reversible_hypergrad.storage.planes import check_place

__all__ = ["Reversible"]


class Reversible(Adjoint):
    """Runs training backwards bit for bit, keeping only the bits that the momentum destroys.

    One step of SGD and its adjoint, from ``aw`` and ``av``, the gradients by w' and v'::

        v' = mu*v + (1-tau)*(g + wd*w)          d_lr = -<aw, v'>;  av -= lr*aw;  u = (1-tau)*av
        w' = w - lr*v'                          d_mu = <av, v>;  d_tau = -<av, g + wd*w>;  d_wd = <u, w>
                                                aw += H u + wd*u;  av *= mu

    The rounding of fixed point counts as the identity. Momentum is the fraction that was used.

    Args:
        state_bits: 64 or 32, see :class:`ReversibleSGD`.
        verify_every: the state is hashed at every so-many-th step and compared on the way back; the start always is.
            1 costs about a tenth of an optimizer step and names the very step that went wrong.
        buffer: where spilled planes wait: "device", "host", or a directory (a file there, written and read behind the
            computation, checked when read, removed at the end).

    Cost: 17 (8.5) bytes per weight, log2(1/momentum) bits per weight and step (0.152 at 0.9), 20 bytes per step; backward
    is one evaluation with Hessian-vector product per step. After ``backward`` the state is let go; a second ``backward``
    (with retain_graph=True) trains once more.

    Raises:
        ValueError: for another ``state_bits`` or ``verify_every``. NotADirectoryError: for ``buffer``.

    >>> import reversible_hypergrad as rh
    >>> rh.Reversible(state_bits=32, verify_every=10)
    Reversible(state_bits=32, verify_every=10, buffer='device')

    Source: Maclaurin, Duvenaud, Adams, *Gradient-based Hyperparameter Optimization through Reversible Learning*,
    ICML 2015, algorithm 2, in torch's convention.
    """

    def __init__(self, state_bits: int = 64, verify_every: int = 1, buffer: str | Path = "device") -> None:
        if state_bits not in (32, 64):
            raise ValueError(f"state_bits: expected 32 or 64, got {state_bits!r}")
        if isinstance(verify_every, bool) or not isinstance(verify_every, int) or verify_every < 1:
            raise ValueError(f"verify_every: expected an integer >= 1, got {verify_every!r}")
        self.state_bits = state_bits
        self.verify_every = verify_every
        self.buffer = check_place("buffer", buffer)

    def __repr__(self) -> str:
        return f"Reversible(state_bits={self.state_bits}, verify_every={self.verify_every}, buffer={str(self.buffer)!r})"

    def start(self, problem: Problem) -> "ReversibleRun":
        if problem.nesterov:
            raise ValueError(
                "nesterov: rh.Reversible() cannot undo a Nesterov step, since its gradient is taken where the weights are only "
                "known after the step is undone. Use adjoint=rh.Checkpoint(), or nesterov=False"
            )
        if any(number == 0 for settings in problem.settings for number in settings.momentum.numbers):
            raise ValueError(
                "momentum: rh.Reversible() expected numbers in (0, 1], got 0. A step with momentum 0 destroys the whole velocity "
                "and cannot be undone from a few bits: use a small momentum, or adjoint=rh.Checkpoint()"
            )
        return ReversibleRun(self, problem)


class ReversibleRun(Run):
    def __init__(self, adjoint: Reversible, problem: Problem) -> None:
        self.adjoint = adjoint
        self.problem = problem
        self.groups: list[FixedGroup] = []
        self.failure: str | None = None
        self.final: list[int] | None = None  # hashes of the trained state
        self.at_end = False  # the groups hold the trained state and all that undoing needs

    def forward(self, record: bool) -> None:
        problem, adjoint = self.problem, self.adjoint
        self.groups = fixed_groups(problem, adjoint.state_bits, adjoint.verify_every, adjoint.buffer)
        try:
            self._train(record)
        except BaseException:
            self._let_go()
            raise
        self._measure()
        self.at_end = record
        if record:
            final = [group.bucket.hash() for group in self.groups]
            if self.final is not None and final != self.final:
                raise ReversalError(
                    "training once more, for a second backward, did not end at the same weights, so there is no exact "
                    f"hypergradient. {CAUSES}"
                )
            self.final = final

    def _train(self, record: bool) -> None:
        problem = self.problem
        with problem.progress("training", problem.steps) as bar:
            for step in range(problem.steps):
                gradients = problem.gradient(step).gradients
                outcomes = [group.step(step, gradients, record) for group in self.groups]
                if any(any(outcome.flags) for outcome in outcomes):
                    buckets = [group.bucket for group in self.groups]
                    error = complaint(buckets, [[gradients[m] for m in g.members] for g in self.groups], outcomes)
                    raise type(error)(f"step {step}: {error}")
                bar.advance(self._bits(step + 1) if bar.wants_text else "")
        for group in self.groups:
            group.store.flush()

    def _let_go(self) -> None:
        for group in self.groups:
            group.store.close()
        self.groups = []

    def pull_back(self, cotangents: Sequence[Tensor | None]) -> Cotangents:
        if self.failure is not None:
            raise ReversalError(f"an earlier backward through this run failed, so it cannot be undone any more: {self.failure}")
        self.failure = "it was interrupted"
        try:
            if not self.at_end:
                # An earlier backward has undone the run; its end was checked to be the very start.
                self.problem.gradient.restart()
                self.forward(record=True)
            result = self._undo(cotangents)
        except BaseException as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.at_end = False
            self._let_go()
        self.failure = None
        return result

    def _undo(self, cotangents: Sequence[Tensor | None]) -> Cotangents:
        problem, groups = self.problem, self.groups
        totals = Cotangents.zeros(problem)
        aws, avs = [group.vector() for group in groups], [group.vector() for group in groups]
        for group, aw in zip(groups, aws, strict=True):
            for i, m in enumerate(group.members):
                cotangent = cotangents[m]
                if cotangent is not None:
                    group.view(aw, i).copy_(cotangent)
        adjoint = list(zip(groups, aws, avs, strict=True))
        verified = problem.steps  # the state before this step is known to be right
        with problem.progress("undoing", problem.steps) as bar:
            for step in reversed(range(problem.steps)):
                for group, aw, av in adjoint:
                    group.through_weights(step, aw, av, group.velocity, totals)
                undoing = [group.undo_weights(step) for group in groups]
                evaluation = problem.gradient(step)
                suspects = [
                    name
                    for group, (record, hash_) in zip(groups, undoing, strict=True)
                    for name in group.undo_velocity(step, record, hash_, evaluation.gradients)
                ]
                if suspects:
                    self._refuse(step, verified, suspects)
                if all(record.hash_before is not None for record, _ in undoing):
                    verified = step
                    problem.report.checks += 1
                us = [group.directions(step, av) for group, _, av in adjoint]
                directions: list[Tensor] = [torch.empty(0)] * len(problem.weights)
                for group, u in zip(groups, us, strict=True):
                    for i, m in enumerate(group.members):
                        directions[m] = group.view(u, i)
                gradients = evaluation.gradients
                by_weights, by_hyperparameters = evaluation.products(directions)
                del evaluation
                for (group, aw, av), u in zip(adjoint, us, strict=True):
                    group.through_velocity(step, av, gradients, totals)
                    group.through_gradient(step, aw, av, u, by_weights, totals)
                totals.add_hyperparameters(by_hyperparameters)
                bar.advance("exact so far")
        problem.report.restored = True
        totals.initial = [torch.empty(0)] * len(problem.weights)
        for group, aw in zip(groups, aws, strict=True):
            for i, m in enumerate(group.members):
                totals.initial[m] = group.view(aw, i).to(problem.weights[m].dtype, copy=True)
        return totals

    def _refuse(self, step: int, verified: int, suspects: list[str]) -> None:
        where = f"step {step}" if verified == step + 1 else f"the steps {step} to {verified - 1}"
        if step == 0 and verified <= 1:
            where = "step 0, at the end of the way back"
        seen = self.problem.gradient.diagnose(step)
        raise ReversalError(
            f"undoing {where} did not restore the state before (near {', '.join(suspects[:3])}), so there is no exact "
            f"hypergradient, and no gradient has been changed. {seen + '. ' if seen else ''}{CAUSES}"
        )

    def _bits(self, steps: int) -> str:
        weight_steps = sum(group.bucket.size for group in self.groups) * steps
        return f"{8 * sum(group.information_bytes() for group in self.groups) / max(weight_steps, 1):.3f} bits/weight/step"

    def _measure(self) -> None:
        report, groups, steps = self.problem.report, self.groups, self.problem.steps
        buckets = [group.bucket for group in groups]
        report.state_bytes = sum(bucket.x.nbytes + bucket.v.nbytes for bucket in buckets)
        report.information_bytes = sum(group.information_bytes() for group in groups)
        report.log_bytes = sum(group.log_bytes() for group in groups)
        weight_steps = max(report.weights * steps, 1)
        report.information_bits = 8 * report.information_bytes / weight_steps
        limit = sum(g.bucket.size * sum(information_limit(g.fraction(step)) for step in range(steps)) for g in groups)
        report.limit_bits = limit / weight_steps
