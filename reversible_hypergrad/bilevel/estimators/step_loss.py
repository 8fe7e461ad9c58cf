"""The training loss of a single step, at any weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.bilevel.task import Task
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.gradients.private_copy import private_copy
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.replay.batches import batches_by_step
from reversible_hypergrad.replay.environment import Environment
from reversible_hypergrad.replay.micro_batches import micro_batches
from reversible_hypergrad.training.beginning import load_buffers

__all__ = ["StepLoss"]


class StepLoss:
    """The loss that a task's next step takes, with its batch and its random numbers, at other weights than those of training.

    It is evaluated on a copy of the model, so that no buffer of training moves. No second derivatives are asked for.

    Args:
        task: of one step.
        state: where it begins.

    Attributes:
        data: the step's batch.
        attached: the hyperparameters in the loss that require grad, with their graphs.
    """

    def __init__(self, task: Task, state: Start) -> None:
        model = private_copy(task.model)
        load_buffers(model, state)
        own = dict(model.named_parameters())
        weights = {name: own[name] for name in state.weights}
        batch_of, steps = batches_by_step(task.batches, 1, state.step)
        self._gradient = LossGradient(model, weights, task.loss, batch_of, task.hyperparameters, task.seed, check=lambda *_: None)
        self._step, self._parts = steps[0], int(task.options.get("accumulate", 1))
        self._environment = Environment.current({w.device for w in weights.values()})
        self.attached = [t for t in pytree.leaves(task.hyperparameters) if isinstance(t, Tensor) and t.requires_grad]
        with Uninterrupted() as signals, self._environment.pinned(), signals.but_for():
            self.data = self._gradient.load(self._step)

    def __call__(self, weights: Mapping[str, Tensor]) -> tuple[float, list[Tensor]]:
        """The loss at ``weights``, and its gradients by each of :attr:`attached`."""
        at = [weight.detach().requires_grad_() for weight in weights.values()]
        with Uninterrupted() as signals, self._environment.pinned(), signals.but_for():
            data = self._gradient.load(self._step)  # so that all see the same random numbers
            before = self._gradient.side_effects()
            try:
                return self._mean(micro_batches(self._step, data, self._parts), at)
            finally:
                before.put_back()

    def _mean(self, parts: list[Any], at: list[Tensor]) -> tuple[float, list[Tensor]]:
        value, gradients = 0.0, [torch.zeros_like(t) for t in self._gradient.wanted]
        for i, part in enumerate(parts):
            loss = self._gradient.value_at(self._gradient.prepare(self._step, part, i), at)
            value += float(loss.detach()) / len(parts)
            for total, by in zip(gradients, self._by_hyperparameters(loss), strict=True):
                if by is not None:
                    total.add_(by, alpha=1 / len(parts))
        return value, gradients

    def _by_hyperparameters(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        wanted = self._gradient.wanted
        return torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
