"""Inputs and targets, and parts of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer

__all__ = ["Examples", "scaled", "split"]


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, row by row; a map-style dataset for :class:`ReplayableLoader`.

    Attributes:
        x: inputs, of shape (examples, ...).
        y: targets, of shape (examples, ...); class labels are int64 of shape (examples,).

    Raises:
        ValueError: for another number of targets than of inputs.

    >>> import torch
    >>> from reversible_hypergrad.datasets import Examples
    >>> part = Examples(torch.rand(3, 4), torch.tensor([0, 2, 1]))
    >>> len(part), part[1][1]
    (3, tensor(2))
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            raise ValueError(
                f"x, y: expected one target per input, got shapes {tuple(self.x.shape)} and {tuple(self.y.shape)}. "
                "The first dimension of both counts the examples"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def split(x: Tensor, y: Tensor, sizes: Sequence[int], seed: int) -> tuple[Examples, ...]:
    """Parts of a data set without a common example, drawn by ``seed``.

    Args:
        x: inputs, of shape (examples, ...).
        y: targets, of shape (examples, ...).
        sizes: how many examples each part has; what is left over after the last is in none.
        seed: of the shuffle. The same (seed, number of examples) gives the same parts on every machine.

    Returns:
        One :class:`Examples` per size: copies, in shuffled order.

    Raises:
        TypeError, ValueError: for sizes that are no integers of at least 0, or sum to more than there are examples.

    >>> import torch
    >>> from reversible_hypergrad.datasets import split
    >>> a, b = split(torch.arange(5), torch.arange(5), [3, 2], seed=1)
    >>> sorted([*a.x.tolist(), *b.x.tolist()])
    [0, 1, 2, 3, 4]
    """
    whole = Examples(x, y)
    for size in sizes:
        check_integer("sizes", size, least=0)
    if sum(sizes) > len(whole):
        raise ValueError(f"sizes: expected at most {len(whole)} in all, the examples that there are, got {list(sizes)}")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order[: sum(sizes)], list(sizes))
    return tuple(Examples(x[chosen], y[chosen]) for chosen in parts)


def scaled(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]."""
    return images.to(torch.float32) / 255
