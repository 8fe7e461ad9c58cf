"""Gradients as the kernels need them, or a clear refusal."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.errors import ReversalError

__all__ = ["gather", "refuse_missing"]


def gather(weights: Sequence[Tensor], names: Sequence[str]) -> list[Tensor | None]:
    """The ``.grad`` of each weight, dense and in its weight's memory order; None where there is none.

    Raises:
        RuntimeError: for a sparse gradient.
        TypeError: for one of another dtype or device.
    """
    gradients: list[Tensor | None] = []
    for weight, name in zip(weights, names, strict=True):
        gradient = weight.grad
        if gradient is not None:
            if gradient.layout is not torch.strided:
                raise RuntimeError(
                    f"{name}: reversible optimizers do not support sparse gradients, got layout {gradient.layout}. "
                    "Use sparse=False in the layer, or gradient.to_dense()"
                )
            if gradient.dtype != weight.dtype or gradient.device != weight.device:
                raise TypeError(
                    f"{name}: expected a gradient of {weight.dtype} on {weight.device}, got {gradient.dtype} on "
                    f"{gradient.device}. Convert it with .to(parameter)"
                )
            if gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight).copy_(gradient)
        gradients.append(gradient)
    return gradients


def refuse_missing(names: Sequence[str], active: Sequence[bool], gradients: Sequence[Tensor | None]) -> None:
    """Raises ReversalError if other tensors have a gradient than in the step that is undone."""
    for name, had, gradient in zip(names, active, gradients, strict=True):
        if had != (gradient is not None):
            raise ReversalError(
                f"{name}: had {'a' if had else 'no'} gradient when the step was taken, but the closure left "
                f"{'none' if had else 'one'}. The closure must clear the gradients (zero_grad()), recompute the same loss and "
                "call backward()"
            )
