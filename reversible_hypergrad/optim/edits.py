"""Parameters that somebody else has changed since the last step."""

from collections.abc import Sequence
from typing import Any

from reversible_hypergrad.optim.parts import Part

__all__ = ["edited", "refuse", "replaced"]


def replaced(parts: Sequence[Part], groups: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the tensors that are no longer where they were in the groups."""
    names = []
    for part in parts:
        params = groups[part.group]["params"] if part.group < len(groups) else []
        for i, weight, name in zip(part.members, part.state.weights, part.state.names, strict=True):
            if i >= len(params) or params[i] is not weight:
                names.append(name)
    return names


def edited(parts: Sequence[Part], all_weights: bool) -> list[str]:
    """Names of the tensors whose weights are not those of the state. If there are none, all are watched from now on.

    Weights that were swapped out and in again, as an average of weights is for an evaluation, are no edit: so those that were
    touched are read and compared, and only those.

    Args:
        all_weights: compare every weight, as after loading.
    """
    names: list[str] = []
    touched = []
    for part in parts:
        reshaped = part.watch.reshaped()
        suspects = range(len(part.state.weights)) if all_weights else part.watch.touched()
        names += [part.state.names[i] for i in reshaped]
        names += part.state.edited([i for i in suspects if i not in reshaped], at_start=part.at_start)
        touched += [part] if suspects else []
    if not names:
        for part in touched:
            part.watch.accept()
    return names


def refuse(names: Sequence[str]) -> None:
    """Raises RuntimeError if there are any."""
    if names:
        raise RuntimeError(
            f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: edited, resized or replaced since the "
            "last step, so the steps so far cannot be continued or undone. Put the weights back, or call "
            "optimizer.mark_boundary() to accept them as a new start that cannot be rewound past"
        )
