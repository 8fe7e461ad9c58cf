"""A batch whose tensors stay where they are, for graphs that read them there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.batch_kinds import is_same, kinds_of, name_of

__all__ = ["StaticBatch", "write"]


class StaticBatch:
    """A copy of one step's batch, and of every later one that has the same structure, sizes, strides and dtypes.

    Args:
        step: the first one.
        batch: of that step.
        device: where its tensors must be.

    Raises:
        ValueError: for a tensor elsewhere, by name.
    """

    def __init__(self, step: int, batch: Any, device: torch.device) -> None:
        leaves, self._spec = pytree.flatten(batch)
        self._kinds = kinds_of(leaves)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and (leaf.device != device or leaf.layout is not torch.strided):
                raise ValueError(
                    f"batches: step {step}: with cuda_graph=True expected all tensors of a batch on {device}, where the weights "
                    f"are, and dense; got {name_of(batch, i)} on {leaf.device}, {leaf.layout}. Move them there in `batches`"
                )
        self._own = [_room(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._constants = [i for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)]
        self.fill(step, batch, leaves)

    @property
    def tree(self) -> Any:
        """In containers of its own: the loss may change them."""
        return pytree.unflatten(self._own, self._spec)

    def fits(self, leaves: Sequence[Any], spec: Any) -> bool:
        return bool(spec == self._spec) and kinds_of(leaves) == self._kinds

    def fill(self, step: int, batch: Any, leaves: Sequence[Any]) -> None:
        """Copies a batch that fits.

        Raises:
            ValueError: if something in it that is not a tensor differs, by name.
        """
        for i in self._constants:
            if not is_same(leaves[i], self._own[i]):
                raise ValueError(
                    f"batches: step {step}: with cuda_graph=True expected whatever is not a tensor to be the same in every step, "
                    f"since the loss's Python code does not run again; got {name_of(batch, i)} = {leaves[i]!r:.40}, where it was "
                    f"{self._own[i]!r:.40}. Pass it as a tensor on the GPU"
                )
        write([self._own[i] for i in self._tensors], [leaves[i] for i in self._tensors])


def write(onto: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copies ``tensors`` into those ``onto``, in few launches."""
    if onto:
        with torch.no_grad():
            torch._foreach_copy_([t.detach() for t in onto], list(tensors))


def _room(tensor: Tensor) -> Tensor:
    """With the same strides, which a sum's order may depend on; but dense, where elements share memory."""
    with torch.no_grad():
        if _shares_memory(tensor):
            own = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        else:
            own = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    # The loss's first check looks for whatever requires grad and will not get it.
    return own.requires_grad_(tensor.requires_grad)


def _shares_memory(tensor: Tensor) -> bool:
    """Whether elements may share memory, as those of an expanded tensor do."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
