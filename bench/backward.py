"""A step taken, and undone: alone, with its adjoint in the same kernels, or with the adjoint in torch's operations."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

import reversible_hypergrad as rh
from reversible_hypergrad._ops import ops
from reversible_hypergrad.reversible.moves import ProgramMoves
from reversible_hypergrad.reversible.record import Record, StepNumbers
from reversible_hypergrad.reversible.state import State

__all__ = ["BYTES", "Backward"]

LR, MOMENTUM = 1e-3, 0.9

# Bytes per float32 weight that must move, as in bench/optimizer_step.py. Before the gradient: v and the product read; x, aw and
# av read and written; the weight written. After it: gradient, x and av read, v read and written.
BYTES = {
    "weights back 32": 4 + 4 + 8 + 8 + 8 + 4,
    "weights back 64": 8 + 4 + 16 + 8 + 8 + 4,
    "states back 32": 4 + 4 + 4 + 8,
    "states back 64": 4 + 8 + 4 + 16,
}


class Backward:
    """The state of SGD's weights, moved without waiting, every move hashed. Learning rate, weight decay and momentum get
    gradients; the gradients stand for the second derivatives' products, too."""

    def __init__(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], state_bits: int, weight_decay: float = 0.0
    ) -> None:
        self.weight_decay, self.gradients = weight_decay, list(gradients)
        names = [f"weights[{i}]" for i in range(len(weights))]
        self.state = state = State(weights, names, rh.SGD(lr=LR), state_bits)
        settings = SimpleNamespace(lr=LR, momentum=MOMENTUM, dampening=0.0, weight_decay=weight_decay)
        self.given = StepNumbers(np.array([MOMENTUM, 1.0]), np.array([1.0, weight_decay, LR]), settings=(settings,))
        self.aw, self.av = (torch.zeros(len(state.x), device=state.x.device) for _ in range(2))
        self.aw.normal_()
        self.sums = torch.zeros(3, len(weights), dtype=torch.float64, device=state.x.device)  # by lr, weight decay, momentum
        self._partials = torch.empty(2 * state.skipped.numel(), dtype=torch.float64, device=state.x.device)
        self._carries = torch.full((len(weights), 1), MOMENTUM, dtype=torch.float64)
        self._none = torch.empty(0, device=state.x.device)
        self.records: list[Record] = []
        self.step()  # so that undoing never dissolves the state

    def step(self) -> None:
        look = not self.records or not self.state.is_late
        record, _ = self.state.step(self.gradients, self.given, None, True, look=look)
        self.records.append(record)

    def undo(self) -> None:
        record = self.records.pop()
        self.state.move_weights(record, back=True, with_hash=True)
        self.state.undo_states(record, self.gradients, True)

    def back(self) -> None:
        self.weights_back()
        self.states_back()

    def weights_back(self) -> None:
        moves = self.state.moves
        assert isinstance(moves, ProgramMoves)
        ops.undo_weights_adjoint(
            *moves.without_gradients(self.records[-1]),
            False,  # moved before
            True,
            moves.words(),
            self.aw,
            [self.av],
            self.gradients,
            self._carries,
            [True],
            self._partials,
            self.sums[:1],
        )

    def states_back(self) -> None:
        state, record = self.state, self.records.pop()
        moves = state.moves
        assert isinstance(moves, ProgramMoves)
        ops.undo_states_adjoint(
            *moves.with_gradients(record, self.gradients),
            state.skipped,
            False,  # moved before
            True,
            moves.words(),
            self.aw,
            [self.av],
            [self._none] * len(state.sizes),
            torch.from_numpy(np.ldexp(record.scales.a, record.scales.exponent)[:, :1].copy()),
            [True, True, False],
            self._partials,
            self.sums[1:],
        )
        state.count_as_not_taken(record)

    def back_in_torch(self) -> None:
        state, record = self.state, self.records.pop()
        parts = [(state.part(i, self.aw), state.part(i, self.av)) for i in range(len(state.sizes))]
        for i, (aw, av) in enumerate(parts):
            aw.add_(self.gradients[i].as_strided(aw.shape, (1,)))
            av.mul_(MOMENTUM)
            self.sums[0, i] = torch.dot(aw, state.value(i, 0, aw.dtype))
            av.add_(aw, alpha=-LR)
        state.move_weights(record, back=True, with_hash=True)
        state.undo_states(record, self.gradients, True)
        for i, (aw, av) in enumerate(parts):
            self.sums[1, i] = torch.dot(av, state.value(i, -1, av.dtype))
            self.sums[2, i] = torch.dot(av, state.value(i, 0, av.dtype))
            if self.weight_decay:
                aw.add_(av, alpha=self.weight_decay)
