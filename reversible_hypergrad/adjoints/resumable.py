"""A run in parts, whose borders are kept in a directory: a killed one goes on from the last of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import CAUSES, Adjoint, End, Run
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.replay.fingerprint import Fingerprint
from reversible_hypergrad.reversible.beginning import Frozen
from reversible_hypergrad.storage.kept import KeptFiles

__all__ = ["ResumableRun", "check_call"]


class ResumableRun(Run):
    """Trains part after part, and keeps where each one ended; walks back through one part at a time, training it once more, and
    keeps how far the gradients have come.

    Args:
        adjoint: of each part.
        problem: the whole run.
        every: steps of a part.
        open_files: gives the files. They are removed when the run has been walked back through, or, if nothing is recorded,
            trained.
        buffers: the model's, as they are.
        call: says what is asked for; kept files must be of the same call.
        environment: where; theirs must have the same bits.
    """

    def __init__(
        self,
        adjoint: Adjoint,
        problem: Problem,
        every: int,
        open_files: Callable[[], KeptFiles],
        buffers: Callable[[], dict[str, Tensor]],
        call: dict[str, str],
        environment: Fingerprint,
    ) -> None:
        self.adjoint, self.problem, self.buffers = adjoint, problem, buffers
        self.call, self.environment = call, environment
        steps = problem.steps
        self.borders = [*range(steps.start, steps.stop, every), steps.stop] if steps else [steps.start]
        self._open_files = open_files
        self.files: KeptFiles | None = None
        self._last: Run | None = None  # of the last part, while it can be walked back through
        self._end: End | None = None
        self._undone = False
        self._asked: list[Any] = []  # of the present walk back: the gradients that it began with

    # Forward

    def forward(self, record: bool) -> None:
        files = self.files = self._open_files()
        check_call(files, self.call, self.environment)
        self._undone = False
        problem, begin, stop = self.problem, self.borders[0], self.borders[-1]
        if _end_of(begin) not in files:
            if problem.readouts is not None:
                problem.readouts.begin(begin)
            self._keep(files, begin, End(list(map(dict, problem.states)), problem.exact))
        done = max(border for border in self.borders if _end_of(border) in files)
        if done == stop and record and not any(name.startswith("back-") for name in files.names()):
            done = self.borders[-2] if len(self.borders) > 1 else begin  # the last part is to be walked back through
        end = self._return_to(files, done)
        for first, last in pairwise(self.borders):
            if first < done:
                continue
            run = self.adjoint.start(self._part(first, last, end))
            run.forward(record and last == stop)
            found = run.end()
            assert found is not None
            end = found
            if _end_of(last) in files:
                self._compare(files, first, last)
            else:
                self._keep(files, last, end)
            self._last = run if record and last == stop else None
        self._end = end
        if not record:
            files.remove(last="call")

    def end(self) -> End | None:
        return None if self._undone else self._end

    def _part(self, first: int, last: int, begin: End) -> Problem:
        return replace(self.problem, steps=range(first, last), states=begin.states, exact=begin.exact, sees_start=False)

    def _keep(self, files: KeptFiles, border: int, end: End) -> None:
        readouts = self.problem.readouts
        files.write(
            _end_of(border),
            {
                "weights": [w.detach() for w in self.problem.weights],
                "states": end.states,
                "exact": None if end.exact is None else [frozen.plain() for frozen in end.exact],
                "buffers": {name: b.detach() for name, b in self.buffers().items()},
                "readouts": None if readouts is None else readouts.kept(),
                "memory": self.problem.gradient.memory(),
            },
        )

    def _return_to(self, files: KeptFiles, border: int) -> End:
        """To where training was at ``border``; returns what weights do not say of it."""
        kept = files.read(_end_of(border))
        with torch.no_grad():
            for weight, values in zip(self.problem.weights, kept["weights"], strict=True):
                weight.copy_(values)
            own = self.buffers()
            for name, values in kept["buffers"].items():
                own[name].copy_(values)
        if self.problem.readouts is not None and kept["readouts"] is not None:
            self.problem.readouts.restore(kept["readouts"])
        if kept["memory"] is not None:
            self.problem.gradient.remember(kept["memory"])
        return self._end_of_kept(kept)

    def _end_of_kept(self, kept: dict[str, Any]) -> End:
        device = self.problem.weights[0].device
        exact = None if kept["exact"] is None else [Frozen.from_plain(own, device) for own in kept["exact"]]
        states = [
            {name: z.to(w.device) for name, z in own.items()} for own, w in zip(kept["states"], self.problem.weights, strict=True)
        ]
        return End(states, exact)

    # Back

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        problem = self.problem
        if self._undone:
            problem.gradient.restart()
            self.forward(record=True)
        files = self.files
        assert files is not None
        self._undone = True
        totals = [Cotangents(problem) for _ in downstream]
        self._asked = _plain(downstream)
        back = self._last_kept(files)
        reached = self.borders[-1]
        if back is not None:
            reached, downstream = self._take_up(files.read(back), downstream, totals)
        for first, last in reversed(list(pairwise(self.borders))):
            if last > reached:
                continue
            run = self._last if last == self.borders[-1] and self._last is not None else self._train_again(files, first, last)
            self._last = None
            found = run.pull_back(downstream)
            downstream = [self._before(one, given) for one, given in zip(found, downstream, strict=True)]
            for total, one in zip(totals, found, strict=True):
                total.add(one)
            back = self._keep_back(files, first, back, downstream, totals)
        self._return_to(files, self.borders[0])
        self._read_start(downstream, totals)
        files.remove(last="call")  # while others are there, they must not be taken for another call's
        self.files, self._end = None, None
        problem.report.restored = True
        return totals

    def _train_again(self, files: KeptFiles, first: int, last: int) -> Run:
        problem = self.problem
        run = self.adjoint.start(self._part(first, last, self._return_to(files, first)))
        run.forward(record=True)
        problem.report.steps_again += last - first
        self._compare(files, first, last)
        return run

    def _compare(self, files: KeptFiles, first: int, last: int) -> None:
        """Training from a kept point on must come to the next one."""
        if not same_bits([w.detach() for w in self.problem.weights], files.read(_end_of(last))["weights"]):
            raise ReversalError(
                f"training once more from step {first} did not come to the weights that were kept at step {last}, so there is no "
                f"exact hypergradient, and no gradient has been changed. {CAUSES}"
            )

    def _before(self, found: Cotangents, given: Downstream) -> Downstream:
        """What comes out of a part's beginning goes into the end of the part before."""
        return Downstream(found.initial, found.states, given.readouts)

    def _read_start(self, downstream: Sequence[Downstream], totals: Sequence[Cotangents]) -> None:
        """The gradients by the first weights and states."""
        for total, one in zip(totals, downstream, strict=True):
            total.initial = [
                torch.zeros_like(w, requires_grad=False) if by is None else by.clone()
                for w, by in zip(self.problem.weights, one.weights, strict=True)
            ]
            total.states = [dict(one.states_of(i)) for i in range(len(self.problem.weights))]
        if self.problem.readouts is not None:
            views: list[list[Tensor]] = [[by for by in total.initial if by is not None] for total in totals]
            self.problem.readouts.pull(self.borders[0], downstream, views, totals)

    def _last_kept(self, files: KeptFiles) -> str | None:
        """The file of an earlier walk back that was killed. One from other gradients is of another backward."""
        for name in files.names():
            if name.startswith("back-"):
                if same_bits(files.read(name)["asked"], self._asked):
                    return name
                files.drop(name)
        return None

    def _take_up(
        self, kept: dict[str, Any], downstream: Sequence[Downstream], totals: Sequence[Cotangents]
    ) -> tuple[int, list[Downstream]]:
        for total, (sources, hyperparameters, readouts) in zip(totals, kept["totals"], strict=True):
            for mine, theirs in ((total.sources, sources), (total.hyperparameters, hyperparameters), (total.readouts, readouts)):
                for one, other in zip(mine, theirs, strict=True):
                    one.copy_(other)
        here = zip(kept["weights"], kept["states"], downstream, strict=True)
        return kept["reached"], [Downstream(w, states, one.readouts) for w, states, one in here]

    def _keep_back(
        self,
        files: KeptFiles,
        reached: int,
        before: str | None,
        downstream: Sequence[Downstream],
        totals: Sequence[Cotangents],
    ) -> str:
        name = f"back-{reached:012d}"
        files.write(
            name,
            {
                "asked": self._asked,
                "reached": reached,
                "weights": [list(one.weights) for one in downstream],
                "states": [[dict(own) for own in one.states] for one in downstream],
                "totals": [(total.sources, total.hyperparameters, total.readouts) for total in totals],
            },
        )
        if before is not None and before != name:
            files.drop(before)
        return name


def check_call(files: KeptFiles, call: dict[str, str], environment: Fingerprint) -> None:
    """Writes down what is asked for, if nothing is kept yet.

    Args:
        files: of one call alone.
        call: argument -> what tells it from others.
        environment: where.

    Raises:
        ValueError: if they are another call's, or of an environment that may have other bits.
    """
    if "call" not in files:
        files.write("call", {**call, "environment": dict(environment)})
        return
    kept = files.read("call")
    different = [name for name in call if kept.get(name) != call[name]]
    if different:
        raise ValueError(
            f"resume: the directory holds another run: {', '.join(different)} differ (kept: {kept.get(different[0])}; now: "
            f"{call[different[0]]}). Make the same call, or give another directory"
        )
    changed = Fingerprint(kept["environment"]).difference(environment)
    if changed is not None:
        raise ValueError(
            f"resume: the directory holds a run that began in another environment, whose bits may be others: {changed}. Go "
            "on where it began, or give another directory"
        )


def _end_of(border: int) -> str:
    return f"step-{border:012d}"


def _plain(downstream: Sequence[Downstream]) -> list[Any]:
    return [[list(one.weights), [dict(own) for own in one.states], list(one.readouts)] for one in downstream]
