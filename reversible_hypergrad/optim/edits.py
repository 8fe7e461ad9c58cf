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
        for i, weight, name in zip(part.members, part.bucket.weights, part.bucket.names, strict=True):
            if i >= len(params) or params[i] is not weight:
                names.append(name)
    return names


def edited(parts: Sequence[Part], by_weights: bool) -> list[str]:
    """Names of the tensors that were written, resized or reshaped.

    Args:
        by_weights: read every weight, as after loading; if all are those of the state, they are watched from now on. Else look
            at version counters and addresses only.
    """
    if not by_weights:
        return [part.bucket.names[i] for part in parts for i in part.watch.edited()]
    names = [name for part in parts for name in part.bucket.edited(at_start=part.steps == 0)]
    if not names:
        for part in parts:
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
