"""Functions that rules are written with, where torch's own have another derivative."""

import torch
from torch import Tensor

__all__ = ["root"]


def root(s: Tensor) -> Tensor:
    """The square root, 0 where ``s`` <= 0, with derivative 0 there.

    A state that was fed zeros alone is 0, as Adam's second moment of a pixel that is never lit. Its update is differentiable
    there, and the root's share in that derivative is 0; torch.sqrt would give infinity times 0, which is NaN.

    >>> s = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> root(s).sum().backward()
    >>> root(s).tolist(), s.grad.tolist()
    ([0.0, 2.0], [0.0, 0.25])
    """
    positive = s > 0
    return torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)
