"""One or several inner problems per outer step, and their mean hypergradient."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.bilevel.estimators import Estimate, Estimator
from reversible_hypergrad.bilevel.outer import Hypergradient
from reversible_hypergrad.bilevel.task import Task, TaskOf

__all__ = ["Mean"]


class Mean:
    """Estimates of the tasks of a number, side by side, averaged.

    Args:
        task: the user's function.
        h: what it is given.
        leaves: the learned tensors in it.
        estimator: of each.
    """

    def __init__(self, task: TaskOf, h: Any, leaves: Sequence[Tensor], estimator: Estimator) -> None:
        self._task, self._h, self._leaves, self._estimator = task, h, leaves, estimator

    def __call__(self, k: int) -> Iterator[Hypergradient]:
        tasks = self._tasks(k)
        count = len(tasks)
        walks = [self._estimator.walk(self._maker(k, i, count, tasks if i == 0 else []), self._leaves) for i in range(count)]
        del tasks
        taken = [0] * count
        try:
            while found := {i: e for i, walk in enumerate(walks) if (e := next(walk, None)) is not None}:
                steps = sum(e.step - taken[i] for i, e in found.items())
                taken = [found[i].step if i in found else taken[i] for i in range(count)]
                yield _mean(list(found.values()), steps)
        finally:
            for walk in walks:
                walk.close()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return self._estimator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._estimator.load_state_dict(state)

    def _maker(self, k: int, i: int, count: int, made: list[Task]) -> Callable[[], Task]:
        """Each task has a graph of its own: the backward of one frees what others would share. The first is there already."""

        def make() -> Task:
            if made:
                first = made[0]
                made.clear()
                return first
            tasks = self._tasks(k)
            if len(tasks) != count:
                raise ValueError(
                    f"task: expected the same number of tasks whenever it is called with k={k}, got {count}, then {len(tasks)}"
                )
            return tasks[i]

        return make

    def _tasks(self, k: int) -> list[Task]:
        found = self._task(k, self._h)
        tasks = [found] if isinstance(found, Task) else found
        if isinstance(tasks, Sequence) and tasks and all(isinstance(one, Task) for one in tasks):
            return list(tasks)
        raise TypeError(f"task: expected a function task(k, h) that returns an rh.Task, or several in a list, got {found!r:.80}")


def _mean(estimates: Sequence[Estimate], steps: int) -> Hypergradient:
    gradients = [
        torch.stack(own).mean(0) if len(own) > 1 else own[0] for own in zip(*(e.gradients for e in estimates), strict=True)
    ]
    return Hypergradient(sum(e.value for e in estimates) / len(estimates), gradients, steps)
