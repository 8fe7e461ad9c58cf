"""Why a step was refused."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad.reversible.outcome import Outcome

if TYPE_CHECKING:
    from reversible_hypergrad.reversible.state import State

__all__ = ["refusal"]

_INCREMENTS = _core.BAD_INCREMENT | _core.STATE_OVERFLOW


def refusal(
    states: Sequence["State"],
    gradients: Sequence[Sequence[Tensor | None]] | None,
    outcomes: Sequence[Outcome],
    beyond: int | None = None,
) -> ArithmeticError | None:
    """The error for a refused step, by the first offending parameter; None if more room would help.

    Args:
        states: those that moved.
        gradients: of each state's tensors; None if they are gone, since the outcomes were read later.
        outcomes: of each state's step.
        beyond: the tensor, of the first state, whose numbers have left the range of floating-point ones, if any has.
    """
    for i, (state, outcome) in enumerate(zip(states, outcomes, strict=True)):
        if not any(outcome.flags):
            continue
        own = [None] * len(state.names) if gradients is None else gradients[i]
        for name, gradient, flags in zip(state.names, own, outcome.flags, strict=True):
            if flags and gradients is None:
                return _late(name, flags)
            if flags and gradient is not None and not bool(torch.isfinite(gradient).all()):
                return FloatingPointError(
                    f"{name}: its gradient is not finite, so the step was refused and nothing has changed. Lower the learning "
                    "rate, clip, or skip such steps (as torch.amp.GradScaler does for an optimizer)"
                )
    if beyond is None:
        return None
    name, dtype = states[0].names[beyond], states[0].weights[beyond].dtype
    what = "a state of its optimizer" if outcomes[0].flags[beyond] & _INCREMENTS else f"a weight ({dtype})"
    return OverflowError(
        f"{name}: {what} would leave the range of floating-point numbers, so the step was refused and nothing has changed. Lower "
        "the learning rate, or clip the gradient"
    )


def _late(name: str, flags: int) -> ArithmeticError:
    """Of a step whose gradients are gone: flags do not tell what is not finite from what grew too fast."""
    if flags & _core.BAD_INCREMENT:
        return FloatingPointError(
            f"{name}: its gradient is not finite, or was many times larger than at the last look, so the step was refused and "
            "nothing has changed. Lower the learning rate, or clip the gradient"
        )
    what = "a state of its optimizer" if flags & _INCREMENTS else "a weight"
    return OverflowError(
        f"{name}: {what} grew out of its integers between two looks, so the step was refused and nothing has changed. Lower the "
        "learning rate, or clip the gradient"
    )
