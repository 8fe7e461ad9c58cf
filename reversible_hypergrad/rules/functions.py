"""Functions that rules are written with, where torch's own have another derivative."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["correctly_rounded", "root"]

_mode = threading.local()


@contextmanager
def correctly_rounded() -> Iterator[None]:
    """Inside, :func:`root` of tensors that need no derivative is the number nearest to the root, as kernels have it. torch's own
    on a CPU may be the one beside that."""
    before = getattr(_mode, "exact", False)
    _mode.exact = True
    try:
        yield
    finally:
        _mode.exact = before


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
        return torch.from_numpy(np.sqrt(np.maximum(s.detach().numpy(), 0)))
    positive = s > 0
    return torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)
