"""A loss along the way."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from reversible_hypergrad.readouts.base import Readout, Sum, check_steps

__all__ = ["LossAt"]


class LossAt(Readout):
    """Another loss after given numbers of steps: one tensor of shape (len(steps),). Its mean is the area under a curve.

    Args:
        loss: ``loss(model, batch, hyperparameters)`` -> scalar tensor, as for :func:`train`, with the hyperparameters of the run.
            The model is in the mode (train, eval) of the run.
        batch: what it is given, the same each time; or a function of the number of steps taken.
        steps: how many steps have been taken, as in :class:`WeightsAt`.

    Random numbers are seeded by the number of steps. Buffers, such as running statistics, are put back.

    Cost: a loss for each on the way forward, and a gradient on the way back.

    Raises:
        TypeError: for a loss that is not callable; from :func:`train`, for what is no integer, and a loss that is no scalar.
        ValueError: from :func:`train`, for steps that the run does not take, and a loss that does not reach the weights.

    >>> import torch, reversible_hypergrad as rh
    >>> def loss(model, batch, _):
    ...     return model(batch).square().mean()
    >>> model, data, held_out = torch.nn.Linear(3, 1), [torch.randn(8, 3)] * 10, torch.randn(20, 3)
    >>> log_lr = torch.tensor(-3.0, requires_grad=True)
    >>> curve = rh.LossAt(loss, held_out, steps=[2, 4, 6, 8, 10])
    >>> trained = rh.train(model, loss, data, optimizer=rh.SGD(lr=log_lr.exp()), readouts={"validation": curve})
    >>> trained.readouts["validation"].mean().backward()
    >>> trained.readouts["validation"].shape, log_lr.grad.shape
    (torch.Size([5]), torch.Size([]))
    """

    def __init__(self, loss: Callable[[nn.Module, Any, Any], Tensor], batch: Any, steps: Sequence[int]) -> None:
        if not callable(loss):
            raise TypeError(f"loss: expected a function (model, batch, hyperparameters) -> scalar, got {type(loss).__name__}")
        self.loss, self.batch, self.steps = loss, batch, steps

    def __repr__(self) -> str:
        return f"LossAt({getattr(self.loss, '__name__', 'loss')}, steps={list(self.steps)})"

    def sums(self, steps: range) -> list[Sum]:
        return []

    def losses(self, steps: range) -> tuple[Callable[[nn.Module, Any, Any], Tensor], Any, list[int]]:
        return self.loss, self.batch, check_steps("readouts: LossAt", self.steps, steps)
