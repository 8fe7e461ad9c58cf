"""Whether a user's loss can be replayed and differentiated twice, and which module spoils it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad.gradients.autograd_graph import is_first_order_only
from reversible_hypergrad.gradients.derivative_check import compare_derivatives
from reversible_hypergrad.gradients.loss import Loss, LossGradient
from reversible_hypergrad.gradients.module_watch import ModuleWatch
from reversible_hypergrad.gradients.private_copy import private_copy
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.replay.environment import Environment

__all__ = ["Replayability", "check_replayable"]


@dataclass
class Replayability:
    """What :func:`check_replayable` found. True if nothing is wrong; ``str()`` of it is a report.

    Attributes:
        same_loss: whether two evaluations gave the same bits of the loss.
        same_gradients: whether they gave the same bits of its gradient.
        second_derivatives: whether the gradient could be differentiated again.
        derivatives_agree: whether these derivatives are those of the gradient, by differences.
        problems: one sentence each, with the module's name where one was found.
    """

    same_loss: bool = True
    same_gradients: bool = True
    second_derivatives: bool = True
    derivatives_agree: bool = True
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self:
            return "replays bit for bit, and has second derivatives"
        return "\n".join(self.problems)


def check_replayable(model: nn.Module, loss: Loss, batch: Any, hyperparameters: Any = None, seed: int = 0) -> Replayability:
    """Tells whether :func:`train` can undo training with this loss, before any training.

    Evaluates loss and gradient twice on a copy of ``model``, seeded and pinned as in a run, compares them bit for bit,
    differentiates the gradient, and looks for the first module whose output differed or that has no second derivative. Then the
    second derivatives are compared with central differences of the gradient along random directions, in float64 if model, batch
    and loss can be cast to it: some of torch's formulas are wrong. What differs by more than 1e-4 of its size (float32: 0.1) is.

    Args:
        model: any module with trainable parameters. It is not modified.
        loss: ``loss(model, batch, hyperparameters)`` -> scalar tensor, as for :func:`train`.
        batch: one batch.
        hyperparameters: any nest of tensors, passed to ``loss``.
        seed: of the random numbers.

    Returns:
        A :class:`Replayability`, true if all is well.

    Raises:
        TypeError: for a model that is no module, or spread over processes, and for a loss that is no scalar.
        ValueError: for a model without trainable parameters, and a loss that does not reach them.
        RuntimeError: if another thread is inside of a run.
        Exception: whatever the loss itself raises.

    Cost: a dozen gradients and three Hessian-vector products, and up to as many per module if something is wrong.

    >>> import torch, reversible_hypergrad as rh
    >>> def loss(model, batch, hyperparameters):
    ...     return model(batch).square().mean()
    >>> print(rh.check_replayable(torch.nn.Linear(3, 1), loss, torch.randn(8, 3)))
    replays bit for bit, and has second derivatives
    >>> class Forgetful(torch.nn.Module):
    ...     calls = 0
    ...     def forward(self, x):
    ...         self.calls += 1
    ...         return x * self.calls
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 1), Forgetful())
    >>> print(rh.check_replayable(model, loss, torch.randn(8, 3)).problems[0])
    the output of '1' (Forgetful) was another one at the second call: it draws unseeded random numbers or counts its calls
    """
    result = Replayability()
    private = private_copy(model)
    trained: dict[str, Tensor] = {name: p for name, p in private.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model: expected parameters that require grad, got none")
    first_order_only: list[bool] = []

    def note(loss: Tensor, gradients: Sequence[Tensor | None], variables: Sequence[Tensor]) -> None:
        first_order_only.append(is_first_order_only([loss, *gradients]))

    gradient = LossGradient(private, trained, loss, lambda step: batch, hyperparameters, seed, check=note)
    environment = Environment.current({w.device for w in trained.values()})
    with Uninterrupted() as signals, environment.pinned(), signals.but_for():
        watch = ModuleWatch(private)
        try:
            first = gradient(0)
        except (RuntimeError, NotImplementedError) as error:
            if not _has_gradient(gradient):
                raise
            _note_missing(result, watch, error, seed)  # a backward that cannot even be recorded
            return result
        watch.compare = True
        second = gradient(0)
        watch.remove()
        result.same_loss = same_bits(first.value, second.value)
        different = [n for n, a, b in zip(trained, first.gradients, second.gradients, strict=True) if not same_bits(a, b)]
        result.same_gradients = not different
        if watch.first is not None:
            result.problems.append(
                f"the output of {watch.first} was another one at the second call: it draws unseeded random numbers or counts its "
                "calls"
            )
        elif different or not result.same_loss:
            what = f"the gradient of {', '.join(different[:3])}" if different else "the loss"
            result.problems.append(
                f"{what} was another one at the second call, though every module gave the same output: the loss function itself "
                "draws unseeded random numbers or counts its calls, or a backward is not deterministic"
            )
        try:
            if any(first_order_only):
                raise RuntimeError("a torch.autograd.Function in it is marked once_differentiable")
            first.products([torch.ones_like(g) for g in first.gradients])
        except (RuntimeError, NotImplementedError) as error:
            _note_missing(result, watch, error, seed)
        if result:
            found = compare_derivatives(private, loss, batch, hyperparameters, seed)
            if not found.are_right:
                result.derivatives_agree = False
                result.problems.append(str(found))
    return result


def _has_gradient(gradient: LossGradient) -> bool:
    """Whether the loss can be differentiated once."""
    try:
        gradient.first_order(gradient.batch(0))
    except Exception:  # the caller raises what it has caught before
        return False
    return True


def _note_missing(result: Replayability, watch: ModuleWatch, error: Exception, seed: int) -> None:
    result.second_derivatives = False
    culprit = watch.without_second_derivative(seed)
    result.problems.append(f"{culprit or 'the loss'} has no second derivative: {str(error).splitlines()[0]}")
