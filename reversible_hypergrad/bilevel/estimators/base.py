"""What gives hypergradients of an inner problem."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.adjoints import Adjoint, Snapshots
from reversible_hypergrad.bilevel.task import Task, detached
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.training import TrainedWeights

__all__ = ["Estimate", "Estimator", "Inner", "direct_part", "gradients_of", "pulled", "refuse"]


@dataclass
class Estimate:
    """A hypergradient, and where it was taken.

    Attributes:
        value: the outer loss.
        gradients: of it, by each of the hyperparameters that require grad.
        direct: the part of them that does not go through training; None where it was not asked for.
        trained: the weights, detached.
        step: inner steps taken until then.
    """

    value: float
    gradients: list[Tensor]
    direct: list[Tensor] | None
    trained: TrainedWeights
    step: int

    @property
    def indirect(self) -> list[Tensor]:
        """The part through training.

        Raises:
            ValueError: where it was not asked for.
        """
        if self.direct is None:
            raise ValueError("split: expected an estimate that was asked for with split=True")
        return [g - d for g, d in zip(self.gradients, self.direct, strict=True)]


class Estimator(ABC):
    """A way to a hypergradient. The strategies of :func:`train` are estimators of whole runs; others look at single steps.

    Attributes:
        online: whether there is one at inner steps, between which the hyperparameters may be moved.
    """

    online: ClassVar[bool] = False

    @abstractmethod
    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        """Trains one inner problem, with estimates on the way or at its end.

        Args:
            task: makes the problem at the present hyperparameters, attached to them.
            leaves: the hyperparameters, which may be moved in place between two estimates.
            split: whether to tell the direct part.

        Raises:
            ValueError: for a problem whose hypergradient it cannot give.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from walk to walk, in plain values, so that an outer loop can be resumed to the same numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Goes on where the one was that gave ``state``."""


class Inner:
    """An inner problem that is trained a few steps at a time, from state to state, each without the graph of those before.

    Args:
        task: as :meth:`Estimator.walk` has it.
    """

    def __init__(self, task: Callable[[], Task]) -> None:
        self._task = task
        self.state: Start | None = None
        self.taken, self.count = 0, task().count

    def next(self, steps: int = 1) -> Task:
        """The inner problem of the next steps, at the present hyperparameters.

        Args:
            steps: how many; fewer if fewer are left.
        """
        return self._task().window(self.state, min(steps, self.count - self.taken))

    def take(self, one: Task, record: bool, adjoint: Adjoint | None = None) -> TrainedWeights:
        """Trains what :meth:`next` gave.

        Args:
            one: the problem of the next steps.
            record: whether to attach the result to the hyperparameters.
            adjoint: by what strategy; :class:`Snapshots` if None.
        """
        with torch.set_grad_enabled(record and torch.is_grad_enabled()):
            trained = one.train(Snapshots() if adjoint is None else adjoint)
        self.state = detached(trained.state)
        self.taken += one.count
        return trained

    def train(self, steps: int, record: bool) -> tuple[Task, TrainedWeights]:
        """Both in one."""
        one = self.next(steps)
        return one, self.take(one, record)

    @property
    def is_done(self) -> bool:
        return self.taken >= self.count


def gradients_of(value: Tensor, leaves: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    """Zero where ``value`` does not depend on a leaf.

    Args:
        value: a scalar.
        leaves: what the gradients are by.
        keep: whether the graph is needed again.
    """
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(value, list(leaves), allow_unused=True, retain_graph=keep)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def pulled(outputs: Sequence[Tensor], cotangents: Sequence[Any], leaves: Sequence[Tensor]) -> list[Tensor]:
    """``cotangents`` of ``outputs`` back to the leaves: zero where nothing depends on one. The graph is kept."""
    attached = [(output, by) for output, by in zip(outputs, cotangents, strict=True) if output.requires_grad]
    if not attached:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(
        [output for output, _ in attached], list(leaves), [by for _, by in attached], allow_unused=True, retain_graph=True
    )
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def direct_part(task: Task, trained: TrainedWeights, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the outer loss where the trained weights do not depend on the hyperparameters."""
    return gradients_of(task.value(detached(trained)), leaves, keep=True)


def refuse(name: str, task: Task, rates: bool = True, initial: bool = True) -> None:
    """Raises ValueError for what an estimator cannot see, of which the hypergradient would be zero.

    Args:
        name: of the estimator.
        task: the problem.
        rates: whether that goes for the optimizer's settings.
        initial: and for initial weights and states.
    """
    remedy = "Use a strategy that sees the whole run, such as rh.Reversible() or rh.Snapshots()"
    if rates and any(t.requires_grad for t in task.optimizer.tensors()):
        raise ValueError(f"estimator: {name} gives no gradient by the optimizer's settings, on which this task depends. {remedy}")
    limit = getattr(task.options.get("clip"), "limit", None)
    if rates and isinstance(limit, Tensor) and limit.requires_grad:
        raise ValueError(f"estimator: {name} gives no gradient by the limit of clip, on which this task depends. {remedy}")
    firsts = [*(task.initial or {}).values()]
    if task.start is not None:
        firsts += [*task.start.weights.values(), *(z for own in task.start.states.values() for z in own.values())]
    if initial and any(t.requires_grad and not t.is_leaf for t in firsts):
        raise ValueError(f"estimator: {name} gives no gradient by initial weights, on which this task depends. {remedy}")
