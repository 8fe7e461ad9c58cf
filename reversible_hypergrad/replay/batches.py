"""Batches by step: a run asks for them twice, forwards and then backwards."""

from collections.abc import Callable, Mapping
from typing import Any

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.replay.micro_batches import MicroBatches

__all__ = ["BatchOf", "batches_by_step"]

BatchOf = Callable[[int], Any]


def batches_by_step(batches: Any, steps: int | None, first: int = 0) -> tuple[BatchOf, range]:
    """A function from step to batch, and the steps.

    Args:
        batches: a sequence, or a function of the step.
        steps: how many; None: as many as there are batches left.
        first: the first step.

    Raises:
        TypeError: for an iterator, or anything else that cannot give a batch again.
        ValueError: for too many steps.
    """
    if steps is not None:
        check_integer("steps", steps, least=0, otherwise="None")
    if isinstance(batches, MicroBatches):
        raise TypeError(
            "batches: expected a sequence or a function step -> batch, got rh.MicroBatches, which is the batch of one step. Pass "
            "[rh.MicroBatches([...]), ...], one per step"
        )
    length = len(batches) if hasattr(batches, "__len__") else None
    if callable(batches):
        if steps is None and length is None:
            raise ValueError("steps: expected a number, since a function of the step has no length; got None")
        return batches, range(first, first + steps if steps is not None else max(int(length or 0), first))
    if hasattr(batches, "__next__"):
        raise TypeError(
            f"batches: got an iterator ({type(batches).__name__}), which is consumed by the forward run, but undoing a step "
            "needs its batch again. Pass list(batches), a function step -> batch, or rh.ReplayableLoader(dataset, ...)"
        )
    if not hasattr(batches, "__getitem__") or length is None or isinstance(batches, Mapping | str | bytes):
        raise TypeError(
            f"batches: expected a sequence or a function step -> batch, got {type(batches).__name__}, which cannot give the "
            "batch of a step again. Pass list(batches), or rh.ReplayableLoader(dataset, ...) in place of a DataLoader"
        )
    if steps is None:
        steps = max(length - first, 0)
    if first + steps > length:
        begun = f" after the {first} that have been taken" if first else ""
        raise ValueError(
            f"steps: expected at most {max(length - first, 0)}, the number of batches{begun}, got {steps}. To go through them "
            "again, pass lambda step: batches[step % len(batches)]"
        )
    return batches.__getitem__, range(first, first + steps)
