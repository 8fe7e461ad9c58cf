"""The losses of one readout, along one run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents

__all__ = ["LossOf", "Losses"]


class LossOf(Protocol):
    """A loss at the run's weights."""

    def batch(self, step: int) -> Any: ...

    def value(self, batch: Any) -> Tensor: ...

    def first_order(self, batch: Any) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients by the weights and by the hyperparameters."""
        ...

    def value_at(self, batch: Any, weights: Sequence[Tensor]) -> Tensor:
        """As a differentiable function of ``weights``."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Inside, evaluations leave buffers and random numbers as they were."""
        ...


class Losses:
    """A loss after some numbers of steps.

    Args:
        loss: at the run's weights.
        moments: numbers of steps taken, ascending.
    """

    def __init__(self, loss: LossOf, moments: Sequence[int]) -> None:
        self.loss = loss
        self.places = {taken: place for place, taken in enumerate(moments)}
        self.values: list[Tensor | None] = []

    def begin(self) -> None:
        self.values = [None] * len(self.places)

    def see(self, taken: int) -> None:
        if taken in self.places:
            with self.loss.aside():
                self.values[self.places[taken]] = self.loss.value(self.loss.batch(taken))

    def output(self, like: Tensor) -> Tensor:
        values = [like.new_zeros((), requires_grad=False) if value is None else value.reshape(()) for value in self.values]
        return torch.stack(values)

    def pull(
        self,
        taken: int,
        given: Sequence[Tensor | None],
        by_weights: Sequence[Sequence[Tensor]],
        totals: Sequence[Cotangents],
    ) -> None:
        """Its gradients, times those by the vector of losses."""
        if taken not in self.places or all(vector is None for vector in given):
            return
        with self.loss.aside():
            of_weights, of_hyperparameters = self.loss.first_order(self.loss.batch(taken))
        for vector, views, total in zip(given, by_weights, totals, strict=True):
            if vector is None:
                continue
            factor = vector[self.places[taken]]
            for view, by in zip(views, of_weights, strict=True):
                if by is not None:
                    view.add_(by * factor)
            for onto, by in zip(total.hyperparameters, of_hyperparameters, strict=False):  # those of a clipping come after them
                if by is not None:
                    onto.add_(by * factor)
