"""Whether two batches are alike in everything but the numbers in their tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["is_same", "kinds_of", "name_of"]


def kinds_of(leaves: Sequence[Any]) -> list[Any]:
    """What must agree for two nests to be of one shape; None for what is no tensor."""
    return [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) if isinstance(t, Tensor) else None for t in leaves]


def is_same(a: Any, b: Any) -> bool:
    """Whether two leaves that are no tensors are equal."""
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # an array's comparison is no yes or no
        return False


def name_of(batch: Any, i: int) -> str:
    """Of a leaf, as in batch['x'][0]."""
    return f"batch{pytree.paths(batch)[i]}"
