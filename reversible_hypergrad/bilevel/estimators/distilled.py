"""Weighted means of weights, and batches drawn with the same weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["Distilled"]


class Distilled:
    """A point between the weights of several steps, and a batch of the size of one with examples of all of their batches.

    As long as all batches are one and the same, unchanged, the batch is it: its parts would add up to it again.

    Args:
        seed: of the draws of examples.

    Attributes:
        weights: by name.
        data: the batch.
    """

    def __init__(self, seed: int) -> None:
        self.weights: dict[str, Tensor] = {}
        self.data: Any = None
        self._generator = torch.Generator().manual_seed(seed)
        self._only: list[tuple[Any, int]] | None = None  # the one batch so far, and how often it had been written to

    def add(self, weights: Mapping[str, Tensor], data: Any, kept: float) -> None:
        """Keeps a share of what there is.

        Args:
            weights: of another step.
            data: its batch.
            kept: in [0, 1]; 0 for the first ones.

        Raises:
            ValueError: for batches that are no tensors with as many examples each.
        """
        first = not self.weights
        if first:
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        else:
            for name, weight in self.weights.items():
                weight.mul_(kept).add_(weights[name].detach(), alpha=1 - kept)
        marks = [(leaf, leaf._version if isinstance(leaf, Tensor) else 0) for leaf in pytree.leaves(data)]
        if not first and not (self._only and _are_one(self._only, marks)):
            self.data, self._only = self._mixed(data, kept), None
            return
        self.data = pytree.map_tensors(torch.clone, data) if first else self.data
        self._only = marks

    def _mixed(self, data: Any, kept: float) -> Any:
        olds, (news, structure) = pytree.leaves(self.data), pytree.flatten(data)
        had, size = _size_of(olds), _size_of(news)
        count = min(round(kept * size), had)
        left = torch.randperm(had, generator=self._generator)[:count]
        come = torch.randperm(size, generator=self._generator)[: size - count]
        if len(olds) != len(news):
            raise ValueError(f"batches: expected batches of one structure, got {len(olds)} and {len(news)} leaves")
        mixed = [_both(old, left, new, come) for old, new in zip(olds, news, strict=True)]
        return pytree.unflatten(mixed, structure)


def _are_one(before: list[tuple[Any, int]], now: list[tuple[Any, int]]) -> bool:
    if len(before) != len(now):
        return False
    pairs = [(a, b) for (a, a_writes), (b, b_writes) in zip(before, now, strict=True) if a_writes == b_writes]
    same = [a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b) for a, b in pairs]
    return len(pairs) == len(now) and all(same)


def _size_of(leaves: list[Any]) -> int:
    """How many examples there are."""
    for leaf in leaves:
        if not isinstance(leaf, Tensor | int | float | str | None):
            raise ValueError(
                "batches: HyperDistill draws examples out of batches along the first dimension of their tensors, got a "
                f"{type(leaf).__name__}. Pass tensors"
            )
    sizes = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim}
    if len(sizes) != 1:
        raise ValueError(
            "batches: HyperDistill draws examples out of batches along the first dimension of their tensors, and expected one "
            f"number of them in all tensors, got {sorted(sizes)}"
        )
    return sizes.pop()


def _both(old: Any, left: Tensor, new: Any, come: Tensor) -> Any:
    if not isinstance(new, Tensor) or not new.ndim:
        return new
    if not isinstance(old, Tensor) or old.shape[1:] != new.shape[1:]:
        got = f"{tuple(old.shape)} and {tuple(new.shape)}" if isinstance(old, Tensor) else type(old).__name__
        raise ValueError(f"batches: HyperDistill mixes examples of several batches, and expected one shape of them, got {got}")
    return torch.cat([old[left.to(old.device)], new[come.to(new.device)]])
