"""A user's loss in float64, whatever it was written in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reversible_hypergrad import pytree

__all__ = ["double", "widened"]

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_CASTS = {torch.Tensor.float: torch.Tensor.double, torch.Tensor.half: torch.Tensor.double}
_CASTS[torch.Tensor.bfloat16] = torch.Tensor.double


def double(nest: Any) -> Any:
    """A nest with its tensors in float64. Those that require grad are copied to leaves that do; integers stay as they are."""
    return pytree.map_tensors(_double, nest)


def _double(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        return tensor.detach().to(_WIDE.get(tensor.dtype, tensor.dtype), copy=True).requires_grad_()
    if tensor.dtype not in _WIDE:
        return tensor
    return tensor.detach().to(_WIDE[tensor.dtype])


@contextmanager
def widened() -> Iterator[None]:
    """Inside, torch's functions compute in float64: what they are given in less, as tensors that a loss has closed over, is cast
    before, and where they are told to give less, as by ``float()`` or ``dtype=``, they give float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(default)


class _Widening(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.autograd.grad, torch.autograd.backward):
            with self._inside_of_backward():
                return function(*args, **kwargs)
        if _writes(function):  # to its first argument, which must be the very tensor
            return function(args[0], *_wide(args[1:]), **_wide(kwargs))
        return _CASTS.get(function, function)(*_wide(args), **_wide(kwargs))

    @contextmanager
    def _inside_of_backward(self) -> Iterator[None]:
        """What is computed again in a backward, as by checkpoint, must be as wide. Torch would send the call here once more."""
        with mock.patch.object(torch.autograd, "has_torch_function", _never), self:
            yield


def _never(given: Any) -> bool:
    """Not a Mock, which would keep everything that it is given."""
    return False


def _writes(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    return name in {"__set__", "__setitem__"} or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _wide(nest: Any) -> Any:
    leaves, structure = pytree.flatten(nest)
    if not any((x if isinstance(x, torch.dtype) else getattr(x, "dtype", None)) in _WIDE for x in leaves):
        return nest
    return pytree.unflatten([_wide_leaf(x) for x in leaves], structure)


def _wide_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.dtype):
        return _WIDE.get(leaf, leaf)
    if isinstance(leaf, Tensor) and leaf.dtype in _WIDE:
        return leaf.to(_WIDE[leaf.dtype])
    return leaf
