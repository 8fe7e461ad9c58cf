"""Functions that rules are written with, where torch's own have another derivative."""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.interrupts import uninterrupted

__all__ = ["correctly_rounded", "root"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_mode = threading.local()


def correctly_rounded(function: _Function) -> _Function:
    """In ``function``, :func:`root` of tensors that need no derivative is the number nearest to the root, as kernels have it.
    torch's own on a CPU may be the one beside that."""

    @uninterrupted  # or Ctrl-C might leave later roots without derivatives
    @functools.wraps(function)
    def rounded(*args: Any, **kwargs: Any) -> Any:
        before = getattr(_mode, "exact", False)
        _mode.exact = True
        try:
            return function(*args, **kwargs)
        finally:
            _mode.exact = before

    return rounded  # type: ignore[return-value]


def root(s: Tensor) -> Tensor:
    """The square root, 0 where ``s`` <= 0, with derivative 0 there.

    A state that was fed zeros alone is 0, as Adam's second moment of a pixel that is never lit. Its update is differentiable
    there, and the root's share in that derivative is 0; torch.sqrt would give infinity times 0, which is NaN.

    >>> s = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> root(s).sum().backward()
    >>> root(s).tolist(), s.grad.tolist()
    ([0.0, 2.0], [0.0, 0.25])
    """
    if getattr(_mode, "exact", False) and s.device.type == "cpu":
        return torch.from_numpy(np.asarray(np.sqrt(np.maximum(s.detach().numpy(), 0))))  # without dimensions it is a scalar
    positive = s > 0
    return torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)
