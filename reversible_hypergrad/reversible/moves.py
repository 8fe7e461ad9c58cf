"""How the integers of a state move; here by the kernels of a rule's program."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad._ops import ops, program_numbers
from reversible_hypergrad.reversible.lateness import Ticket
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.record import Record

if TYPE_CHECKING:
    from reversible_hypergrad.reversible.state import State

__all__ = ["Moves", "ProgramMoves"]

Gradients = Sequence[Tensor | None]


class Moves(ABC):
    """The moves of one state. They never raise for bad numbers: they report flags and stay exactly invertible."""

    queues: ClassVar[bool] = True  # whether steps can be queued on a GPU with a ticket

    def __init__(self, state: "State") -> None:
        self.state = state

    @property
    def numbers(self) -> int:
        """How many numbers of the rule a step is given."""
        return program_numbers(self.state.rule.program) if self.state.rule.program else 0

    @abstractmethod
    def step(self, record: Record, gradients: Gradients, with_hash: bool, again: bool, ticket: Ticket | None) -> Outcome:
        """One step; fills the record's planes.

        Args:
            gradients: one per tensor, of its weight's dtype and memory order; None for a tensor that takes no part.
            again: after undoing by these gradients: what was refused then stays.
        """

    @abstractmethod
    def move_weights(self, record: Record, back: bool, with_hash: bool, ticket: Ticket | None) -> Outcome:
        """The weights to before the step, or forward again. The hash is that of the weights alone."""

    @abstractmethod
    def undo_states(self, record: Record, gradients: Gradients, with_hash: bool, ticket: Ticket | None) -> Outcome:
        """The states to before the step. The hash is that of the states alone."""

    def words(self) -> Tensor:
        """Where an op writes its outcome: a tensor of its own for each, since on a GPU it is read later."""
        state = self.state
        return torch.empty(1 + len(state.sizes) * (2 + len(state.z)), dtype=torch.int64, device=state.x.device)


class ProgramMoves(Moves):
    """By the fused kernels of csrc/rules. On a GPU they are queued on the current stream, and nothing here waits for them."""

    def __init__(self, state: "State") -> None:
        super().__init__(state)
        self._none = torch.empty(0, device=state.x.device)
        self._nothing_skipped = state.skipped[:0]

    def step(self, record: Record, gradients: Gradients, with_hash: bool, again: bool, ticket: Ticket | None) -> Outcome:
        words = self.words()
        skipped = self.state.skipped if again else self._nothing_skipped
        ops.step(*self.with_gradients(record, gradients), skipped, with_hash, words, *_presented(ticket))
        return self._outcome(words)

    def move_weights(self, record: Record, back: bool, with_hash: bool, ticket: Ticket | None) -> Outcome:
        words = self.words()
        ops.move_weights(*self.without_gradients(record), back, with_hash, words, *_presented(ticket))
        return self._outcome(words)

    def undo_states(self, record: Record, gradients: Gradients, with_hash: bool, ticket: Ticket | None) -> Outcome:
        words = self.words()
        ops.undo_states(*self.with_gradients(record, gradients), self.state.skipped, with_hash, words, *_presented(ticket))
        return self._outcome(words)

    def without_gradients(self, record: Record) -> tuple[object, ...]:
        """What the ops that move weights begin with."""
        return self.state.rule.program, self.state.weights, *self._state_and_numbers(record)

    def with_gradients(self, record: Record, gradients: Gradients) -> tuple[object, ...]:
        """What the ops that move states begin with."""
        given = [self._none if gradient is None else gradient for gradient in gradients]
        return self.state.rule.program, self.state.weights, given, *self._state_and_numbers(record)

    def _state_and_numbers(self, record: Record) -> tuple[object, ...]:
        state = self.state
        return state.x, state.z, record.numbers, record.shifts, record.given.elements, record.planes

    def _outcome(self, words: Tensor) -> Outcome:
        return Outcome(words, len(self.state.sizes))


def _presented(ticket: Ticket | None) -> tuple[Tensor | None, int]:
    return (None, 0) if ticket is None else (ticket.first_refused, ticket.number)
