"""An inner problem: a training run, and the loss of what comes out of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.adjoints import Adjoint, Snapshots
from reversible_hypergrad.gradients.bound import Loss
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.rules.base import Rule
from reversible_hypergrad.training import TrainedWeights, train

__all__ = ["Task", "TaskOf", "detached"]

Outer = Callable[[TrainedWeights], Tensor]


@dataclass(frozen=True)
class Task:
    """One inner problem of a bilevel one: what :func:`train` takes, and the outer loss of the trained weights.

    Bilevel problems are given as a function ``task(k, h)`` of the outer step k and the hyperparameters h that returns one of
    these, or several. Learning rates, initial weights, features of a support set, whatever depends on h, is computed in it by
    ordinary autograd.

    Args:
        model: any module with trainable parameters. A copy of it is trained.
        loss: ``loss(model, batch, hyperparameters)`` -> scalar tensor, as for :func:`train`.
        batches: a sequence, a function from step to batch, or :class:`ReplayableLoader`.
        outer: trained weights -> scalar tensor, such as a validation loss by ``torch.func.functional_call(model, weights, x)``.
            It may depend on h directly, too. Buffers after training are ``weights.buffers``.
        optimizer: :class:`SGD`, or another rule.
        steps: how many; as many as there are batches if None.
        hyperparameters: any nest of tensors, passed to ``loss``.
        initial: name -> initial weight, for some or all parameters.
        start: where to begin, in place of the model's weights and states of zero.
        seed: of the random numbers of each step.
        options: further arguments of :func:`train`, such as ``clip`` or ``accumulate``.

    Raises:
        TypeError: for an ``outer`` that is not callable.

    >>> import torch, reversible_hypergrad as rh
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(10, 8, 3)
    >>> def task(k, h):
    ...     return rh.Task(
    ...         model,
    ...         lambda model, x, log_l2: model(x).square().mean() + log_l2.exp() * model.weight.square().sum(),
    ...         data,
    ...         outer=lambda weights: torch.func.functional_call(model, weights, data[0]).square().mean(),
    ...         optimizer=rh.SGD(h["log_lr"].exp()),
    ...         hyperparameters=h["log_l2"],
    ...         seed=k,
    ...     )
    >>> h = {"log_lr": torch.tensor(-3.0, requires_grad=True), "log_l2": torch.tensor(-5.0, requires_grad=True)}
    >>> one = task(0, h)
    >>> one.outer(one.train(rh.Reversible())).backward()
    >>> bool(h["log_lr"].grad != 0), bool(h["log_l2"].grad != 0)
    (True, True)
    """

    model: nn.Module
    loss: Loss
    batches: Any
    outer: Outer
    optimizer: Rule
    steps: int | None = None
    hyperparameters: Any = None
    initial: Mapping[str, Tensor] | None = None
    start: Start | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.outer):
            raise TypeError(f"outer: expected a function of the trained weights, got {type(self.outer).__name__}")

    @property
    def count(self) -> int:
        """How many steps.

        Raises:
            ValueError: if neither ``steps`` nor ``batches`` say so.
        """
        if self.steps is not None:
            return self.steps
        if callable(self.batches) and not hasattr(self.batches, "__len__"):
            raise ValueError("steps: expected a number, since `batches` is a function, got None")
        return len(self.batches) - (self.start.step if self.start else 0)

    def train(self, adjoint: Adjoint | None = None) -> TrainedWeights:
        """The whole run."""
        return train(
            self.model,
            self.loss,
            self.batches,
            steps=self.steps,
            optimizer=self.optimizer,
            hyperparameters=self.hyperparameters,
            initial=self.initial,
            start=self.start,
            adjoint=adjoint,
            seed=self.seed,
            **self.options,
        )

    def untrained(self) -> TrainedWeights:
        """The weights that the run begins with, as if after no step, without a graph."""
        with torch.no_grad():
            return replace(self.until(0), options={}).train(Snapshots())

    def until(self, stop: int) -> "Task":
        """The same run, which ends after ``stop`` of its steps. Schedules are cut."""
        return replace(self, steps=stop, optimizer=self.optimizer.cut(self.count, slice(0, stop)))

    def window(self, state: Start | None, steps: int) -> "Task":
        """Some steps of the run, from ``state`` on; None: from its beginning. Schedules are cut."""
        if state is None:
            return self.until(steps)
        taken = state.step - (self.start.step if self.start else 0)
        optimizer = self.optimizer.cut(self.count, slice(taken, taken + steps))
        return replace(self, steps=steps, optimizer=optimizer, start=state, initial=None)

    def value(self, trained: TrainedWeights) -> Tensor:
        """The outer loss.

        Raises:
            TypeError: if it is no scalar tensor.
        """
        found = self.outer(trained)
        if not isinstance(found, Tensor) or found.numel() != 1:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"outer: expected it to return a scalar tensor, got {got}. Reduce it, as with .mean()")
        return found


TaskOf = Callable[[int, Any], Task | Sequence[Task]]


def detached(nest: Any, requires_grad: bool = False) -> Any:
    """The same values without their graphs; those of floating point as leaves that require grad, if so."""

    def leaf(tensor: Tensor) -> Tensor:
        found = tensor.detach()
        return found.requires_grad_() if requires_grad and found.is_floating_point() else found

    if isinstance(nest, TrainedWeights):
        return nest.standing_for({name: leaf(weight) for name, weight in nest.items()})
    return pytree.map_tensors(leaf, nest)
