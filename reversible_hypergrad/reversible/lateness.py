"""Steps that are queued on a GPU, and what they report, which the host looks at later and many at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from reversible_hypergrad.reversible.outcome import Outcome, read

__all__ = ["LOOK_AT_FIRST", "LOOK_EVERY", "Check", "Lookout", "Ticket", "none_refused"]

LOOK_EVERY = 64  # steps between two looks at a GPU, each of which waits for it
LOOK_AT_FIRST = 16  # steps of a run, or of an optimizer's parameters, that are looked at one by one: in these, numbers grow most

# A step, its outcomes, the hashes that they are compared with, and its gradients unless they are gone. Raises if it is wrong.
Check = Callable[[int, Sequence[Outcome], Sequence[int | None], Sequence[Tensor] | None], None]


class Lookout:
    """Calls ``check`` for every step once, in order: at once if its outcomes are there (on the CPU), else when many are read.

    As a context it ends with nothing left unchecked. An exception inside it may come from a fault that nobody has looked at
    yet; then the fault is raised, with the exception as its context.

    Args:
        check: of one step.
        looked: is given the outcomes of all steps that were read together, once these are checked.
    """

    def __init__(self, check: Check, looked: Callable[[Sequence[Sequence[Outcome]]], None] | None = None) -> None:
        self._check, self._looked = check, looked
        self._waiting: list[tuple[int, Sequence[Outcome], Sequence[int | None]]] = []

    def add(
        self, step: int, outcomes: Sequence[Outcome], gradients: Sequence[Tensor], expected: Sequence[int | None] = ()
    ) -> None:
        for outcome in outcomes:
            if not outcome.is_read:
                break
        else:
            self._check(step, outcomes, expected, gradients)
            return
        self._waiting.append((step, outcomes, expected))
        if len(self._waiting) >= LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Reads everything in one go, and checks it. Each device is waited for once."""
        waiting, self._waiting = self._waiting, []
        read(outcome for _, outcomes, _ in waiting for outcome in outcomes)
        for step, outcomes, expected in waiting:
            self._check(step, outcomes, expected, None)
        if self._looked is not None and waiting:
            self._looked([outcomes for _, outcomes, _ in waiting])

    def __enter__(self) -> "Lookout":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, Exception):
            self.look()


@dataclass(frozen=True)
class Ticket:
    """A step's place among those that share ``first_refused``, on the device of their state.

    Kernels write a refused step's number there. From then on no later step takes place, and :meth:`State.retract` takes back
    that very step and no other: so both can be queued with each step, before anybody knows whether the ones before it were
    refused.
    """

    first_refused: Tensor  # int64, one element
    number: int  # ascending from step to step


def none_refused(device: torch.device) -> Tensor:
    return torch.full((1,), torch.iinfo(torch.int64).max, device=device)
