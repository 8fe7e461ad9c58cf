"""How far estimates are from the exact hypergradient."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.adjoints import Adjoint, Snapshots
from reversible_hypergrad.bilevel.estimators import Estimate, as_estimator
from reversible_hypergrad.bilevel.task import Task, TaskOf
from reversible_hypergrad.checks import check_integer

__all__ = ["Comparison", "ComparisonRow", "compare"]


@dataclass(frozen=True)
class ComparisonRow:
    """One estimator at one horizon; means over the tasks that were looked at.

    Attributes:
        estimator: as text.
        horizon: inner steps.
        cosine: with the exact hypergradient.
        ratio: of norms, estimate over exact.
        indirect_cosine: of the parts that go through training; nan where one of them is zero.
        indirect_ratio: likewise.
        seconds: CPU time of a walk, training included.
    """

    estimator: str
    horizon: int
    cosine: float
    ratio: float
    indirect_cosine: float
    indirect_ratio: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``str()`` of it is a table.

    Attributes:
        rows: by horizon, each with the exact one first.
    """

    rows: list[ComparisonRow]

    def __str__(self) -> str:
        width = max(len(row.estimator) for row in self.rows)
        lines = [f"{'estimator':{width}}  {'steps':>6}  {'cosine':>7}  {'ratio':>8}  {'through training':>17}  {'seconds':>8}"]
        for row in self.rows:
            whole, through = f"{row.cosine:7.3f}  {row.ratio:8.2g}", f"{row.indirect_cosine:7.3f}  {row.indirect_ratio:8.2g}"
            lines.append(f"{row.estimator:{width}}  {row.horizon:6}  {whole}  {through:>17}  {row.seconds:8.3f}")
        return "\n".join(lines)


def compare(
    task: TaskOf,
    h: Any,
    estimators: Sequence[Any],
    *,
    horizons: Sequence[int] | None = None,
    at: Sequence[int] = (0,),
    exact: Adjoint | None = None,
) -> Comparison:
    """Estimates beside the exact hypergradient of the same runs: angle, length, and time.

    Hyperparameters stay as they are. Of estimators that give one at inner steps, it is that of the last step.

    Args:
        task: ``task(k, h)`` -> :class:`Task`, or several, of which the gradients are averaged.
        h: any nest of tensors, of which those that require grad count.
        estimators: strategies such as ``rh.DrMAD()``, and estimators such as ``rh.OneStep()``.
        horizons: numbers of inner steps, each at most the task's; its own number if None.
        at: outer steps k whose tasks to look at; the rows are means over them.
        exact: the exact strategy; :class:`Snapshots` if None.

    Returns:
        A :class:`Comparison`.

    Raises:
        TypeError: for what is no estimator.
        ValueError: for no hyperparameters, a strategy that is not exact, a horizon beyond the task's steps, and whatever an
            estimator cannot see.

    Cost: the walks of all of them, for each horizon and outer step.

    >>> import torch, reversible_hypergrad as rh
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(20, 8, 3)
    >>> def task(k, h):
    ...     return rh.Task(
    ...         model,
    ...         lambda model, x, log_l2: model(x).exp().mean() + (log_l2.exp() * model.weight.square()).sum(),
    ...         data,
    ...         outer=lambda weights: torch.func.functional_call(model, weights, data[0]).exp().mean(),
    ...         optimizer=rh.SGD(0.02, momentum=0.9),
    ...         hyperparameters=h,
    ...     )
    >>> found = rh.compare(task, torch.full((1, 3), -3.0, requires_grad=True), [rh.Truncated(5)], horizons=[5, 20])
    >>> [(row.horizon, round(row.cosine, 3)) for row in found.rows[:2]]
    [(5, 1.0), (5, 1.0)]

    Source: the comparison of Lee et al., *Online Hyperparameter Meta-Learning with Hypergradient Distillation*, ICLR 2022, figure
    3, with the exact gradient of the whole run.
    """
    leaves = [x for x in pytree.leaves(h) if isinstance(x, Tensor) and x.requires_grad]
    if not leaves:
        raise ValueError("h: expected hyperparameters that require grad, got none")
    truth = Snapshots() if exact is None else exact
    if not truth.exact:
        raise ValueError(f"exact: expected an exact strategy, got {truth!r}, of which {truth.approximation}")
    rows: list[ComparisonRow] = []
    for horizon in horizons or [_tasks(task, at[0], h)[0].count]:
        check_integer("horizons", horizon, least=1)
        exacts = [_mean(task, h, k, horizon, truth, leaves) for k in at]
        rows.append(_row(truth, horizon, exacts, exacts))
        for e in estimators:
            kept = as_estimator(e).state_dict()  # each row begins with what an estimator knew before
            rows.append(_row(e, horizon, [_mean(task, h, k, horizon, e, leaves) for k in at], exacts))
            as_estimator(e).load_state_dict(kept)
    return Comparison(rows)


Found = tuple[Tensor, Tensor, float]  # gradient and its indirect part, flat; seconds


def _tasks(task: TaskOf, k: int, h: Any) -> list[Task]:
    found = task(k, h)
    return [found] if isinstance(found, Task) else list(found)


def _mean(task: TaskOf, h: Any, k: int, horizon: int, estimator: Any, leaves: Sequence[Tensor]) -> Found:
    count = len(_tasks(task, k, h))
    began = time.process_time()
    estimates = [_last(task, h, k, i, horizon, estimator, leaves) for i in range(count)]
    seconds = time.process_time() - began
    total = sum(_flat(e.gradients) for e in estimates) / count
    through = sum(_flat(e.indirect) for e in estimates) / count
    return torch.as_tensor(total), torch.as_tensor(through), seconds


def _last(task: TaskOf, h: Any, k: int, i: int, horizon: int, estimator: Any, leaves: Sequence[Tensor]) -> Estimate:
    def one() -> Task:
        found = _tasks(task, k, h)[i]
        if horizon > found.count:
            raise ValueError(f"horizons: expected at most the task's {found.count} steps, got {horizon}")
        return found.until(horizon)

    *_, last = as_estimator(estimator).walk(one, leaves, split=True)
    return last


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def _row(estimator: Any, horizon: int, found: Sequence[Found], exacts: Sequence[Found]) -> ComparisonRow:
    pairs = list(zip(found, exacts, strict=True))
    return ComparisonRow(
        repr(estimator),
        horizon,
        fmean(_cosine(a[0], b[0]) for a, b in pairs),
        fmean(_ratio(a[0], b[0]) for a, b in pairs),
        fmean(_cosine(a[1], b[1]) for a, b in pairs),
        fmean(_ratio(a[1], b[1]) for a, b in pairs),
        fmean(a[2] for a, _ in pairs),
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else math.nan


def _ratio(a: Tensor, b: Tensor) -> float:
    norm = float(b.norm())
    return float(a.norm()) / norm if norm else math.nan
