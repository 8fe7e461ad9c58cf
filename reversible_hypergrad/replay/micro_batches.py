"""A step's batch in parts, whose gradients are added up."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["MicroBatches", "micro_batches"]


class MicroBatches(list[Any]):
    """A batch for ``train`` that is given as a list of micro-batches: the step's gradient is the mean of theirs.

    A list with another name, so that ``train`` knows it from a batch that is a list. What ``batches`` gives for a step may be
    one; how many micro-batches there are, and how large each one is, may change from step to step. Those of unequal sizes count
    the same. They may be nested: then the innermost ones are the micro-batches, and grouping changes nothing.

    Args:
        micro_batches: at least one, each as the loss takes it, or :class:`MicroBatches`.

    Raises:
        ValueError: if there is none.

    The mean is taken in fixed point, see ``train``, so that its bits depend on neither grouping nor order. What each micro-batch
    gives must not depend on them either: its random numbers are seeded by (seed, step, its place), and buffers are updated one
    micro-batch after the other, so with dropout or BatchNorm's running statistics the order does matter.

    Cost: a view of the list. See ``train`` for that of the steps.

    >>> import torch, reversible_hypergrad as rh
    >>> images = torch.randn(4, 10, 3)
    >>> def batches(step):
    ...     return rh.MicroBatches(images[step].split(4))
    >>> [len(micro) for micro in batches(0)]
    [4, 4, 2]
    >>> model = torch.nn.Linear(3, 1)
    >>> def loss(model, x, _):
    ...     return model(x).square().mean()
    >>> trained = rh.train(model, loss, batches, steps=4, optimizer=rh.SGD(lr=0.1))
    >>> trained["weight"].sum().backward()
    >>> trained.report.restored
    True

    Source: gradient accumulation; Huang et al., *GPipe*, NeurIPS 2019, call its parts micro-batches.
    """

    def __init__(self, micro_batches: Iterable[Any]) -> None:
        super().__init__(micro_batches)
        if not self:
            raise ValueError("micro_batches: expected at least one, got none. Skip the step, or give it one")

    def flat(self) -> Iterator[Any]:
        """The innermost ones, in order."""
        for micro_batch in self:
            if isinstance(micro_batch, MicroBatches):
                yield from micro_batch.flat()
            else:
                yield micro_batch


def micro_batches(step: int, batch: Any, parts: int) -> list[Any]:
    """The micro-batches of ``batch``: those that it lists, or it in so many equal ``parts``.

    Args:
        step: of the batch, for errors.
        batch: :class:`MicroBatches`, or a nest whose tensors are cut along their first dimension into views. Whatever is no
            tensor goes to every part as it is.
        parts: how many, at least 1. A batch in one part is the very same object.

    Raises:
        ValueError: for a tensor that does not divide, by name; for a batch without tensors, or one that is cut already.
    """
    if isinstance(batch, MicroBatches):
        if parts > 1:
            raise ValueError(
                f"accumulate: step {step}: expected a batch that is not cut yet, got rh.MicroBatches and accumulate={parts}. "
                "Leave one of them out"
            )
        return list(batch.flat())
    if parts == 1:
        return [batch]
    leaves, structure = pytree.flatten(batch)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise ValueError(
            f"accumulate: step {step}: expected a batch with tensors to cut into {parts} parts, got none in "
            f"{type(batch).__name__}. Return rh.MicroBatches([...]) from `batches` instead"
        )
    rows = [_parts(step, batch, i, leaf, parts) for i, leaf in enumerate(leaves)]
    return [pytree.unflatten(list(column), structure) for column in zip(*rows, strict=True)]


def _parts(step: int, batch: Any, i: int, leaf: Any, parts: int) -> list[Any]:
    """Of leaf ``i``."""
    if not isinstance(leaf, Tensor):
        return [leaf] * parts
    size = leaf.shape[0] if leaf.ndim else 0
    if size == 0 or size % parts:
        raise ValueError(
            f"accumulate: step {step}: expected tensors whose first dimension divides into {parts} equal parts, got "
            f"batch{pytree.paths(batch)[i]} of shape {tuple(leaf.shape)}. Drop the rest, or return rh.MicroBatches([...]), whose "
            "sizes may differ, from `batches`"
        )
    return list(leaf.chunk(parts))
