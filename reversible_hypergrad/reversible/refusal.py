"""Why a step was refused."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad.reversible.bucket import Bucket
from reversible_hypergrad.reversible.outcome import Outcome

__all__ = ["complaint"]


def complaint(
    buckets: Sequence[Bucket], gradients: Sequence[Sequence[Tensor | None]] | None, outcomes: Sequence[Outcome]
) -> ArithmeticError:
    """The error for a refused step, by the first offending parameter.

    Args:
        gradients: None if they are gone, since the outcomes were read later. Flags do not tell infinite from out of range.
    """
    for i, (bucket, outcome) in enumerate(zip(buckets, outcomes, strict=True)):
        layout = bucket.format
        grads = [None] * len(bucket.names) if gradients is None else gradients[i]
        for name, gradient, flags in zip(bucket.names, grads, outcome.flags, strict=True):
            if flags & _core.BAD_GRADIENT and gradients is None:
                return FloatingPointError(
                    f"{name}: its gradient is not finite, or beyond the fixed-point range +-{layout.velocity_range:g} of "
                    f"state_bits={layout.state_bits}. The step was refused and nothing has changed. If it is not finite, lower "
                    "the learning rate or clip. If it is too large: " + bucket.remedy("scale the loss down, or clip the gradient")
                )
            if flags and gradient is not None and not bool(torch.isfinite(gradient).all()):
                return FloatingPointError(
                    f"{name}: its gradient is not finite, so the step was refused and nothing has changed. Lower the learning "
                    "rate, clip, or skip such steps (as torch.amp.GradScaler does for an optimizer)"
                )
            if flags & (_core.BAD_GRADIENT | _core.VELOCITY_OVERFLOW):
                what = "gradient" if flags & _core.BAD_GRADIENT else "velocity"
                largest = "" if gradient is None else f"; the largest gradient is {gradient.abs().max().item():g}"
                return OverflowError(
                    f"{name}: its {what} is beyond the fixed-point range +-{layout.velocity_range:g} of state_bits="
                    f"{layout.state_bits}{largest}. The step was refused and nothing has changed. "
                    + bucket.remedy("scale the loss down, or clip the gradient")
                )
            if flags:
                return OverflowError(
                    f"{name}: a weight would leave the fixed-point range +-{layout.weight_range:g} of state_bits="
                    f"{layout.state_bits}. The step was refused and nothing has changed. "
                    + bucket.remedy("lower the learning rate, or rescale the parameter")
                )
    raise AssertionError("complaint() needs an outcome with flags")
