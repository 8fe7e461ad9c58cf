"""The weights before the first step, which fixed point may not hold exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["InitialWeights"]

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass
class InitialWeights:
    """One tensor's weights where they differ from their fixed-point form, so that undoing ends at the very same bits.

    With 64-bit state and float32 weights few elements differ (those below 2^-22), kept as index and value. With 32-bit
    state most do, and a copy of the tensor is smaller.
    """

    index: Tensor | None  # int64 into the flat weights; None: `value` is the whole tensor
    value: Tensor

    @staticmethod
    def differences(weight: Tensor, rounded: Tensor) -> "InitialWeights | None":
        """None if nothing differs. Both flat, of one dtype; compared by bits, so -0.0 is kept."""
        bits = _BITS[weight.element_size()]
        index = (weight.view(bits) != rounded.view(bits)).nonzero().flatten()
        if index.numel() == 0:
            return None
        if index.numel() * (8 + weight.element_size()) >= weight.numel() * weight.element_size():
            return InitialWeights(None, weight.clone())
        return InitialWeights(index, weight[index].clone())

    def restore(self, weight: Tensor) -> None:
        """Writes them into the flat ``weight``."""
        if self.index is None:
            weight.copy_(self.value)
        else:
            weight[self.index] = self.value

    @property
    def nbytes(self) -> int:
        return self.value.nbytes + (0 if self.index is None else self.index.nbytes)
