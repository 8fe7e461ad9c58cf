"""Writes to the weights inside of a loss, which a run would neither undo nor differentiate."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.gradients.same_bits import same_bits

__all__ = ["WeightWrites"]

_EVERY = 64  # losses


class _Before(NamedTuple):
    versions: list[int]
    norms: list[Tensor] | None


class WeightWrites:
    """Compares the weights before and after a loss: the counts that torch keeps of writes, and in the first loss and at every
    64th one their norms, since writes through ``.data`` are not counted.

    Args:
        names: of the weights.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._losses = names, 0

    def before(self, weights: Sequence[Tensor]) -> _Before:
        due = self._losses % _EVERY == 0 and not (weights[0].is_cuda and torch.cuda.is_current_stream_capturing())
        self._losses += 1
        return _Before([w._version for w in weights], _norms(weights) if due else None)

    def refuse(self, before: _Before, weights: Sequence[Tensor]) -> None:
        """Raises RuntimeError if one of them is another one."""
        written = [n for n, w, version in zip(self._names, weights, before.versions, strict=True) if w._version != version]
        if before.norms is not None and not written:
            pairs = zip(self._names, before.norms, _norms(weights), strict=True)
            written = [name for name, a, b in pairs if not same_bits(a, b)]
        if written:
            raise RuntimeError(
                f"loss: the loss or the model wrote to the weight {written[0]!r} in place, as Embedding(max_norm=...) does, or "
                "clamp_() under no_grad(). A run would neither undo nor differentiate that. Leave it out: divide by the norm in "
                "the loss, or penalize it"
            )


def _norms(weights: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(torch._foreach_norm(list(weights)))
