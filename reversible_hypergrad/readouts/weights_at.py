"""Weights on the way."""

from collections.abc import Sequence
from typing import Any

from reversible_hypergrad.readouts.base import Readout, Sum, Term, check_steps

__all__ = ["WeightsAt"]


class WeightsAt(Readout):
    """The weights after given numbers of steps, in ascending order; a dict of name -> tensor for each.

    Args:
        steps: how many steps have been taken; 0 are the initial weights. In a run that continues another they are counted from
            the first run's beginning.

    Cost: a copy of the weights for each.

    Raises:
        TypeError: from :func:`train`, for what is no integer.
        ValueError: from :func:`train`, for steps that the run does not take.

    >>> import torch, reversible_hypergrad as rh
    >>> def loss(model, batch, _):
    ...     return model(batch).square().mean()
    >>> model, data = torch.nn.Linear(3, 1), [torch.randn(8, 3)] * 10
    >>> trained = rh.train(model, loss, data, optimizer=rh.SGD(lr=0.1), readouts={"early": rh.WeightsAt([2, 5])})
    >>> [w["weight"].shape for w in trained.readouts["early"]]
    [torch.Size([1, 3]), torch.Size([1, 3])]
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps

    def __repr__(self) -> str:
        return f"WeightsAt({list(self.steps)})"

    def sums(self, steps: range) -> list[Sum]:
        return [_At(taken) for taken in check_steps("readouts: WeightsAt", self.steps, steps)]

    def result(self, outputs: list[Any]) -> list[Any]:
        return outputs


class _At(Sum):
    def __init__(self, at: int) -> None:
        self._at = at

    def term(self, taken: int) -> Term | None:
        return Term(1.0) if taken == self._at else None
