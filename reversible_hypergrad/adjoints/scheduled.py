"""States kept at chosen steps, and training again between them: what snapshots and all kinds of checkpoints have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.float_run import FloatRun
from reversible_hypergrad.adjoints.floats import FloatGroup
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.storage.places import open_store
from reversible_hypergrad.storage.planes import PlaneStore

__all__ = ["Schedule", "ScheduledRun", "scheduled_cost"]


class Schedule(ABC):
    """Which steps' states to keep.

    Attributes:
        uniform: whether what is kept depends on the number of steps and of states held alone, not on which steps they are.
    """

    uniform: ClassVar[bool] = False

    @abstractmethod
    def keep(self, start: int, stop: int, held: int) -> Sequence[int]:
        """Steps between ``start`` and ``stop``, exclusive, in ascending order, whose states to keep on the way from one to the
        other. The state before ``start`` is at hand for as long as any step in between is needed.

        Args:
            start: a step whose state is there.
            stop: a later step.
            held: how many states are kept now, the initial one not counted.
        """


class ScheduledRun(FloatRun):
    """Keeps states on a stack, one per step that the schedule names; the walk back takes the top one or trains on from it.

    A state is the weights. The rule's states join where training goes on from it, or where the adjoint looks at them.

    Args:
        problem: what is trained.
        schedule: which states to keep.
        place: where they wait: "device", "host", or a directory.
    """

    def __init__(self, problem: Problem, schedule: Schedule, place: str | Path) -> None:
        super().__init__(problem)
        self.schedule, self.place = schedule, place
        self._stores: list[PlaneStore] = []
        self._kept: list[tuple[int, bool]] = []  # step, and whether with the rule's states
        self._planned: dict[int, bool] = {}

    def keep(self, step: int) -> None:
        if step == self.problem.steps.start:
            self._stores = [open_store(self.place, group.device) for group in self.groups]
            self._plan(step, self.problem.steps.stop)
        self._keep_if_planned(step)

    def forward(self, record: bool) -> None:
        super().forward(record)
        try:
            for store in self._stores:
                store.flush()  # a full disk is train()'s news, not backward()'s
        except BaseException:
            self._rewind()
            raise

    def restore(self, step: int) -> None:
        first = self.problem.steps.start
        at, with_states = self._kept[-1] if self._kept else (first, False)
        if at == first:
            self.load(self.begin)
        else:
            for group, store in zip(self.groups, self._stores, strict=True):
                _unpack(group, store.pop() if at == step else store.top(), with_states)
            if at == step:
                self._kept.pop()
                return
        self._plan(at, step)
        for between in range(at, step):
            self._keep_if_planned(between)
            self.train_again(between)

    def train_again(self, step: int) -> None:
        gradient = self.problem.gradient
        _, gradients = gradient.values(gradient.batch(step))
        for group in self.groups:
            group.step(step, gradients)
        self.problem.report.steps_again += 1

    def _plan(self, start: int, stop: int) -> None:
        # Schedules count from the beginning of the run.
        first = self.problem.steps.start
        steps = [first + step for step in self.schedule.keep(start - first, stop - first, len(self._kept))]
        self._planned = {s: self.with_states or after - s > 1 for s, after in pairwise([*steps, stop])}

    def _keep_if_planned(self, step: int) -> None:
        with_states = self._planned.get(step)
        if with_states is None:
            return
        for group, store in zip(self.groups, self._stores, strict=True):
            store.push(_pack(group, with_states))
        self._kept.append((step, with_states))
        report = self.problem.report
        report.kept_bytes = max(report.kept_bytes, sum(store.nbytes for store in self._stores))

    def let_go(self) -> None:
        for store in self._stores:
            store.close()
        self._stores, self._kept = [], []


def scheduled_cost(schedule: Schedule, size: RunSize) -> Cost:
    """Goes through the walk back without training; what was gone through once, or needs no training at all, is not again."""
    known: dict[tuple[int, int], tuple[int, float]] = {}  # steps and states held -> steps trained again, most vectors
    whole = 1 + size.states
    alone = whole if size.with_states else 1.0  # of a state before a step that is not trained again from it

    def walk(start: int, stop: int, held: int) -> tuple[int, float]:
        """Back from ``stop`` to ``start``, whose state is there."""
        places = schedule.keep(start, stop, held)
        if isinstance(places, range):
            return 0, len(places) * alone
        if not places:
            return (stop - start) * (stop - start - 1) // 2, 0.0
        key = (stop - start, held) if schedule.uniform else (start, stop)
        if key not in known:
            again, vectors, most = 0, 0.0, 0.0
            for i, (begin, end) in enumerate(pairwise([start, *places, stop])):
                if i:
                    vectors += whole if end - begin > 1 else alone
                if end - begin > 1:  # all but the last of its steps once more
                    more, peak = walk(begin, end - 1, held + i)
                    again, most = again + end - 1 - begin + more, max(most, vectors + peak)
            known[key] = again, max(most, vectors)
        return known[key]

    again, most = walk(0, size.steps, 0)
    return Cost(size.float_bytes + most * size.vector_bytes, size.time(again))


def _pack(group: FloatGroup, with_states: bool) -> Tensor:
    state = torch.cat([group.w, *group.z.values()]) if with_states else group.w.clone()
    return state.view(torch.uint8)


def _unpack(group: FloatGroup, plane: Tensor, with_states: bool) -> None:
    parts = plane.view(group.w.dtype).view(-1, len(group.w))
    group.w.copy_(parts[0])
    if with_states:
        for own, part in zip(group.z.values(), parts[1:], strict=True):
            own.copy_(part)
