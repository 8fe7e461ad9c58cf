"""A function whose second derivative is wrong."""

from __future__ import annotations

import torch


class Wrong(torch.autograd.Function):
    """x -> x^3. Its gradient is right; that of its gradient is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x.detach().square()
