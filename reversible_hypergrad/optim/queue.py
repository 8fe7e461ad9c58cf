"""Steps on a GPU that nobody has looked at yet."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.optim.parts import Part
from reversible_hypergrad.reversible.lateness import LOOK_AT_FIRST, LOOK_EVERY, Ticket, none_refused
from reversible_hypergrad.reversible.outcome import Outcome, is_late, read

__all__ = ["Queue"]


class Queue:
    """The latest steps, oldest first, with their outcomes. Those after a refused one have not taken place on the device."""

    def __init__(self) -> None:
        self._waiting: list[list[Outcome]] = []  # of each part
        self._first_refused: Tensor | None = None
        self._to_look = 0  # steps that are looked at before others are queued again

    def takes(self, parts: Sequence[Part]) -> bool:
        """Whether the next step of ``parts`` may be queued: on one GPU, since a word on one does not stop a step on another; with
        all scales chosen, which takes a look; and not one of a part's first, nor soon after a refused one, since numbers grow
        there."""
        if self._to_look:
            self._to_look -= 1
            return False
        devices = {part.state.x.device for part in parts}
        return (
            len(devices) == 1
            and is_late(next(iter(devices)))
            and all(part.steps >= LOOK_AT_FIRST and part.state.moves.queues and not part.state.any_unset for part in parts)
        )

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= LOOK_EVERY

    def ticket(self, device: torch.device, number: int) -> Ticket:
        if self._first_refused is None or self._first_refused.device != device:
            self._first_refused = none_refused(device)
        return Ticket(self._first_refused, number)

    def add(self, outcomes: list[Outcome]) -> None:
        self._waiting.append(outcomes)

    def look(self, parts: Sequence[Part]) -> tuple[int, list[Outcome]] | None:
        """Waits for all of them; afterwards the queue is empty. None, and ``parts`` have room for the next ones; or the first
        refused step: how many have not taken place with it, and its outcomes."""
        waiting, self._waiting = self._waiting, []
        read(outcome for outcomes in waiting for outcome in outcomes)
        for i, outcomes in enumerate(waiting):
            if any(any(outcome.flags) for outcome in outcomes):
                self._first_refused, self._to_look = None, LOOK_EVERY
                return len(waiting) - i, outcomes
        for i, part in enumerate(parts if waiting else ()):
            part.state.make_room(*(outcomes[i] for outcomes in waiting))
        return None
