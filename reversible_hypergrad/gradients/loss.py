"""The training loss's gradient as a function of the step: one code path for training and for its reversal."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.bound import Bound, Loss
from reversible_hypergrad.gradients.buffer_reads import BufferReads
from reversible_hypergrad.gradients.diagnosis import diagnose
from reversible_hypergrad.gradients.evaluation import LossEvaluation, dense
from reversible_hypergrad.gradients.input_gradients import InputGradients
from reversible_hypergrad.gradients.loss_checks import Check, LossChecks, check_second_derivative
from reversible_hypergrad.gradients.side_effects import Buffers, LossSideEffects, set_aside
from reversible_hypergrad.gradients.weight_writes import WeightWrites
from reversible_hypergrad.problem.gradient import Gradient
from reversible_hypergrad.replay.batches import BatchOf
from reversible_hypergrad.replay.environment import mix, seed_step

__all__ = ["Loss", "LossGradient"]

_NO_HOOKS = (
    "loss: rh.Unroll() expected no torch.utils.checkpoint, nor other hooks for saved tensors, in the loss or around train(): "
    "what they compute again, they compute with the weights of another step. Take rh.Snapshots(), which is as exact and keeps "
    "the graph of one step at a time, rh.Checkpoint() or rh.Reversible()"
)


class LossGradient(Gradient):
    """``autograd.grad(create_graph=True)`` of ``loss(model, batch, hyperparameters)``, always.

    A plain backward gives other bits for some layers (LSTM, GroupNorm, SiLU, weight_norm), so the forward run takes this path
    as well, although it needs no second derivatives.

    Args:
        model: the private copy.
        weights: name -> trained parameter of ``model``, moved in place by the run.
        loss: the user's function.
        batches: step -> batch.
        hyperparameters: any nest; tensors in it that require grad get gradients.
        seed: with the step, and the part of its batch, of the random numbers of batch and loss.
        check: looks at a loss and its gradients, which have graphs, and may raise; in the first step, and wherever there is an
            operation of a new kind.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        loss: Loss,
        batches: BatchOf,
        hyperparameters: Any = None,
        seed: int = 0,
        check: Check = check_second_derivative,
    ) -> None:
        self.names, self.weights = list(weights), list(weights.values())
        self._model, self._loss, self._batches, self._seed = model, loss, batches, seed
        leaves, structure = pytree.flatten(hyperparameters)
        own = [t.detach().requires_grad_() if isinstance(t, Tensor) and t.requires_grad else t for t in leaves]
        self.wanted = [t for t in own if isinstance(t, Tensor) and t.requires_grad]
        self.hyperparameters = pytree.unflatten(own, structure)
        self._cuda_devices = tuple({w.device for w in self.weights if w.device.type == "cuda"})
        self.bound = Bound(model, loss)
        self._first_buffers = Buffers(model)
        self._check, self._checks = check, LossChecks(check)
        self._inputs, self._writes = InputGradients(), WeightWrites(self.names)
        self._buffer_reads = BufferReads(model, self._cuda_devices)

    def load(self, step: int) -> Any:
        seed_step(self._seed, step, self._cuda_devices)
        with torch.enable_grad():
            return self._batches(step)

    def prepare(self, step: int, data: Any, part: int = 0) -> Any:
        if part:
            seed_step(self._seed, step, self._cuda_devices, part)
        return data

    def of(self, batch: Any) -> LossEvaluation:
        with torch.enable_grad():
            loss = self._loss_of(batch, self.weights)
            gradients = self._differentiate(loss, self.weights)
        return LossEvaluation(loss, gradients, self.names, self.weights, self.wanted)

    def values(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            loss = self._loss_of(batch, self.weights)
            if self._checks.due:
                # Only gradients with a graph can be checked, and theirs may have other last bits.
                buffers = Buffers(self._model)
                self._differentiate(loss, self.weights)
                buffers.put_back_moved()
            gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        return loss.detach(), [dense(n, w, g) for n, w, g in zip(self.names, self.weights, gradients, strict=True)]

    def attached(self, batch: Any, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        with torch.enable_grad():
            loss = self.value_at(batch, weights)
            gradients = self._differentiate(loss, weights)
        return loss, gradients

    def with_loss(self, loss: Loss, batches: BatchOf) -> "LossGradient":
        """Of another loss of the same model, weights and hyperparameters, with random numbers of its own."""
        other = copy(self)
        other._loss, other._batches, other._seed = loss, batches, mix(self._seed)
        other.bound = Bound(self._model, loss)
        other._checks, other._inputs = LossChecks(self._check), InputGradients()
        return other

    def value(self, batch: Any) -> Tensor:
        """The loss alone."""
        with torch.enable_grad():  # it may differentiate by its inputs
            loss = self._evaluated(batch, self.weights)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"readouts: expected a loss that returns a scalar tensor, got {loss!r:.60}. Reduce it")
        return loss.detach()

    def value_at(self, batch: Any, weights: Sequence[Tensor]) -> Tensor:
        """The loss as a differentiable function of ``weights``."""
        with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(_NO_HOOKS):
            return self._loss_of(batch, weights)

    def first_order(self, batch: Any) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """The gradients by weights and by hyperparameters, without a graph."""
        with torch.enable_grad():
            loss = self._loss_of(batch, self.weights)
        found = torch.autograd.grad(loss, [*self.weights, *self.wanted], allow_unused=True)
        return list(found[: len(self.weights)]), list(found[len(self.weights) :])

    def _loss_of(self, batch: Any, weights: Sequence[Tensor]) -> Tensor:
        """With its graph, which has been looked at."""
        since = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        loss = self._evaluated(batch, weights)
        self._checks.look(loss, [*weights, *self.wanted, *self._inputs.taken()], since)
        return loss

    def _evaluated(self, batch: Any, weights: Sequence[Tensor]) -> Tensor:
        """What the user's function returns at ``weights``."""
        # Inside of somebody's autocast, even a disabled one, an autocast in the loss would find its casts of earlier weights.
        torch.clear_autocast_cache()
        batch, before = self._inputs.lend(batch), self._writes.before(weights)
        loss = self._buffer_reads.evaluate(lambda own: self._call(batch, own), weights)
        self._writes.refuse(before, weights)
        return loss

    def _call(self, batch: Any, weights: Sequence[Tensor]) -> Tensor:
        if weights is self.weights:
            return self._loss(self._model, batch, self.hyperparameters)
        named = {f"model.{name}": weight for name, weight in zip(self.names, weights, strict=True)}
        loss: Tensor = torch.func.functional_call(self.bound, named, (batch, self.hyperparameters))
        return loss

    def _differentiate(self, loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """With a graph, which is looked at where something is new in it."""
        gradients = torch.autograd.grad(loss, list(weights), create_graph=True, allow_unused=True)
        if self._checks.due:
            buffers = Buffers(self._model)  # a checkpoint moves them when it computes again
            self._checks.check(loss, gradients, [*weights, *self.wanted])
            buffers.put_back_moved()
        return list(gradients)

    def diagnose(self, step: int) -> str:
        return diagnose(self, step)

    def expect_no_replay(self) -> None:
        self._buffer_reads.at_once = True

    def restart(self) -> None:
        self._first_buffers.put_back()

    def aside(self) -> AbstractContextManager[None]:
        """Inside, evaluations leave buffers and random numbers as they were."""
        return set_aside(self._model, self._cuda_devices)

    def side_effects(self) -> LossSideEffects:
        return LossSideEffects(self._model, self._cuda_devices)
