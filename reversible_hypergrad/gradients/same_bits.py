"""Comparison of nests of tensors, bit for bit."""

from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["same_bits"]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nests hold the same tensors, NaNs included. What is not a tensor counts as the same."""
    first, second = pytree.leaves(a), pytree.leaves(b)
    if len(first) != len(second):
        return False
    for x, y in zip(first, second, strict=True):
        if not isinstance(x, Tensor):
            continue
        if not isinstance(y, Tensor) or x.shape != y.shape or not bool(((x == y) | ((x != x) & (y != y))).all()):
            return False
    return True
