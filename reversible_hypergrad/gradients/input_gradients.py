"""Losses that differentiate by their inputs, as gradient penalties and equations of physics do."""

from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["InputGradients"]


class InputGradients:
    """Lends a loss tensors of its own, which it may make require grad, in the place of those of its batch.

    They share memory with the batch. From the second loss on only if the first one made use of that: it takes some microseconds.
    """

    def __init__(self) -> None:
        self._lends = True
        self._lent: list[Tensor] = []

    def lend(self, batch: Any) -> Any:
        self._lent = []
        return pytree.map_tensors(self._alias, batch) if self._lends else batch

    def _alias(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:  # made so outside, by somebody who may want its gradient
            return tensor
        alias = tensor.detach()
        self._lent.append(alias)
        return alias

    def taken(self) -> list[Tensor]:
        """Those lent last that require grad since."""
        found = [tensor for tensor in self._lent if tensor.requires_grad]
        self._lends, self._lent = bool(found), []
        return found
