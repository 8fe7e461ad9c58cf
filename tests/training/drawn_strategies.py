"""Random memory strategies whose gradients are exact."""

from __future__ import annotations

from typing import Any

import reversible_hypergrad as rh

__all__ = ["draw_strategy", "forward_only", "undoes"]


def draw_strategy(draws: Any, steps: int, few: bool, undone: bool) -> rh.adjoints.Adjoint | None:
    """For a run of so many steps.

    Args:
        draws: with its random numbers.
        steps: of the run.
        few: whether there are few hyperparameters.
        undone: whether it may be one that undoes steps.
    """
    kinds = [
        *["reversible"] * 8 * undone,
        "snapshots",
        "checkpoint",
        "tree",
        "slots",
        "unroll",
        "truncated",
        *["forward"] * 3 * few,
    ]
    kind = draws.random.choice(kinds)
    if kind == "reversible":
        segments = draws.random.choice((1, 1, 2, 3, "auto"))
        return None if draws.maybe(0.1) else rh.Reversible(verify_every=draws.random.choice((1, 1, 3)), segments=segments)
    if kind == "truncated":
        return rh.Truncated(
            steps + draws.random.randint(0, 3), draws.random.choice((None, rh.Checkpoint(), *[rh.Reversible()] * undone))
        )
    return {
        "snapshots": rh.Snapshots(),
        "checkpoint": rh.Checkpoint(draws.random.choice((None, 1, 3))),
        "tree": rh.RecursiveCheckpoint(draws.random.choice((2, 3))),
        "slots": rh.RecursiveCheckpoint(slots=draws.random.choice((1, 2, 4))),
        "unroll": rh.Unroll(),
        "forward": rh.ForwardMode(chunk=draws.random.choice((1, 5, 16)), force=True),
    }[kind]


def undoes(strategy: Any) -> bool:
    """Whether it needs rules whose steps can be undone."""
    return strategy is None or isinstance(getattr(strategy, "adjoint", strategy), rh.Reversible)


def forward_only(strategy: Any) -> bool:
    """Whether it gives no gradient by the model's own parameters, as documented."""
    return isinstance(strategy, rh.ForwardMode)
