"""The integer state of tensors under a rule, and its moves from step to step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.reversible.exponents import (
    EXPONENTS,
    exponent_of_increments,
    exponent_unseen,
    gain_bits,
    growth,
    magnitudes,
)
from reversible_hypergrad.reversible.integers import Integers, flat
from reversible_hypergrad.reversible.lateness import Ticket
from reversible_hypergrad.reversible.moves import Gradients, Moves, ProgramMoves
from reversible_hypergrad.reversible.operations import OperationMoves
from reversible_hypergrad.reversible.outcome import Outcome, read
from reversible_hypergrad.reversible.record import Record, StepNumbers, combine
from reversible_hypergrad.reversible.refusal import refusal
from reversible_hypergrad.reversible.scales import ScaleState
from reversible_hypergrad.rules.base import Rule

__all__ = ["State"]

# Bits that integers on a GPU must leave free at a look, or the next step makes room: until the next look they may grow so far.
_LEAST_FREE = 3
_FREED = 5
# Bits left above the mean of squares that equal increments would come to. Each one doubles quanta, whose rounding weights with
# small gradients feel. So none, where a step that needs more is taken again with a bit of room; where nobody looks at every step,
# as many as a look would make.
_SQUARES_ROOM = {False: 0, True: 2 * _LEAST_FREE}
# Weights that are looked at in one go, on the CPU, where a piece should fit the cache, and on a GPU.
_PIECE = {False: 1 << 14, True: 1 << 22}


class State(Integers):
    """The integers of ``weights``, all on one device, and of their states under ``rule``.

    Every tensor has a slot for each state of the rule, and last one for its weights: integers Z whose values are ``Z * sigma``,
    sigma on the host, per tensor and slot. The caller keeps the records of steps and hands them back in reverse order. After
    every call the visible weights are the rounded ones of the state. What outgrows the integers gets larger quanta.

    Args:
        weights: dense, on one device.
        names: of them, for messages.
        rule: its compiled program moves the state, or, if it has none, its functions do.
        state_bits: 64 or 32.

    Raises:
        OverflowError: if a weight is not finite. Nothing is changed then.
    """

    def __init__(self, weights: Sequence[Tensor], names: Sequence[str], rule: Rule, state_bits: int) -> None:
        self.allocate(weights, names, rule, state_bits)
        self.quantize_weights()

    def allocate(self, weights: Sequence[Tensor], names: Sequence[str], rule: Rule, state_bits: int) -> None:
        super().allocate(weights, names, rule, state_bits)
        self.unset = np.ones((len(self.sizes), len(self.z)), bool)
        self._factors = np.ones((1, self.slots))  # of the last step
        self.taken = 0  # so far; undoing them does not count
        self._no_room = np.zeros((len(self.sizes), self.slots), np.int64)
        self.more_room = self._no_room  # bits by which the next step shifts, to make room
        self._shown_exponents: NDArray[np.int64] | None = None  # with which no weight can be too large to be shown
        self._largest_exponents = np.array([EXPONENTS[own.state_bits][1] for own in self.formats])
        self.no_planes = torch.empty(0, dtype=torch.uint8, device=self.x.device)
        self.moves: Moves = ProgramMoves(self) if rule.program else OperationMoves(self)

    @property
    def unset(self) -> NDArray[np.bool_]:
        """Of shape (tensors, states): those that have been zero so far, so that their quanta may be chosen."""
        return self._unset

    @unset.setter
    def unset(self, unset: NDArray[np.bool_]) -> None:
        self._unset, self.any_unset = unset, bool(unset.any())

    def take_states(self, other: "State") -> None:
        """Goes on with the states of ``other``, of the same tensors, where these have as many elements as before."""
        same = np.array(self.sizes) == np.array(other.sizes)
        now, old = self.scales.state, other.scales.state
        taken = ScaleState(now.a.copy(), now.count.copy(), now.exponent.copy())
        self.unset = np.where(same[:, None], other.unset, self.unset)
        for i in np.flatnonzero(same).tolist():
            for mine, theirs in zip(self.z, other.z, strict=True):
                self.part(i, mine).copy_(other.part(i, theirs))
            for to, of in ((taken.a, old.a), (taken.count, old.count), (taken.exponent, old.exponent)):
                to[i, :-1] = of[i, :-1]
        self.scales.state = taken

    # Forward

    def step(
        self,
        gradients: Gradients,
        given: StepNumbers,
        hash_before: int | Outcome | None,
        with_hash: bool,
        *,
        look: bool = True,
        ticket: Ticket | None = None,
    ) -> tuple[Record, Outcome]:
        """One step, which counts as taken. A tensor whose gradient is None keeps its weights and states.

        What outgrew the integers is shifted to make room, and the step taken again.

        Args:
            gradients: one per tensor, of its weight's dtype and memory order, or None.
            given: the settings.
            hash_before: of the present state, or who will know it; None: undoing the step is not checked.
            with_hash: whether the outcome gets the hash of the state after the step.
            look: whether to look at the outcome. If not, the caller does, later, and calls :meth:`make_room` then; what has
                outgrown the integers by then is an error.
            ticket: with ``look=False``, the step's place in its queue.

        Raises:
            FloatingPointError: a gradient, or what the rule makes of it, is not finite. Everything is as before then, but that
                the visible weights are the rounded ones.
            OverflowError: something is beyond the range of floating-point numbers. Everything is as before then, too.
        """
        before, unset, owed = self.scales.state, self.unset, self.more_room
        if look:
            self._choose_exponents(gradients, given)
        chosen, room = self.scales.state, owed
        while True:
            record = self.record(given, [g is not None for g in gradients], room)
            record.hash_before, record.unset, record.owed = hash_before, unset, owed
            outcome = self.moves.step(record, gradients, with_hash, False, ticket)
            if not look:
                break
            beyond = self._beyond_dtype(outcome)
            if not any(outcome.flags) and beyond is None:
                break
            self.retract(record, gradients)
            self.scales.state = chosen
            try:
                room = room + self._growth(record, outcome, gradients, beyond)
            except ArithmeticError:
                self.scales.state, self.unset, self.more_room = before, unset, owed
                raise
        self.more_room = self._no_room
        if look:
            self._look(outcome)
        return record, outcome

    def record(self, given: StepNumbers, active: list[bool], room: NDArray[np.int64] | None = None) -> Record:
        """A step's record, its planes empty. The scales are those after it from now on."""
        self._factors, self.taken = given.factors, self.taken + 1
        inactive = None if all(active) else ~np.array(active)
        owed = room if room is not None and room is not self._no_room and room.any() else None
        record = Record.of_decay(self.scales, given, inactive, owed, self.no_planes)
        if record.plane_bytes:
            record.planes = torch.empty(record.plane_bytes, dtype=torch.uint8, device=self.x.device)
        return record

    def go_back(
        self, given: StepNumbers, before: ScaleState, room: NDArray[np.int64] | None, pop_planes: Callable[[], Tensor]
    ) -> Record:
        """The record again of the step just taken, in which all tensors took part. The scales are those before it from now on.

        Args:
            given: the step's settings.
            before: the scales, but for their counts.
            room: as :meth:`record` had it.
            pop_planes: called if there are any.
        """
        after = self.scales.state
        move = self.scales.go_back(before, given.factors, given.of_rule, room)
        planes = pop_planes() if move.plane_bytes else self.no_planes
        return Record(given, self.scales.state, after, *move.tables(), planes)

    def retract(self, record: Record, gradients: Gradients, ticket: Ticket | None = None) -> None:
        """Takes back the step just taken, with its own gradients. With its ticket only if it was refused: the host need not know,
        and goes on counting it as taken."""
        after = self.scales.state, self.unset, self.more_room
        self.move_weights(record, back=True, ticket=ticket)
        self.undo_states(record, gradients, False, ticket)
        if ticket is not None:
            self.scales.state, self.unset, self.more_room = after

    def count_as_not_taken(self, record: Record) -> None:
        """What the host keeps is that of before the step; the integers are there already."""
        scales = record.scales
        if record.unset is not None and (record.unset is not self.unset or self.any_unset):
            exponent = scales.exponent.copy()
            exponent[:, :-1][record.unset] = 0
            scales = replace(scales, exponent=exponent)
        self.scales.state = scales
        if record.unset is not None and record.owed is not None:
            if record.unset is not self.unset:
                self.unset = record.unset
            self.more_room = record.owed

    def make_room(self, *outcomes: Outcome) -> None:
        """Of the latest steps, read late: what has come close to its limits gets room in the next step."""
        self._look(*outcomes)

    def _look(self, *outcomes: Outcome) -> None:
        if not self.is_late:
            if self.any_unset:
                self.unset = self.unset & (np.array(outcomes[-1].used)[:, :-1] == 0)
                self._forget_exponents()
            return
        used = np.max([outcome.used for outcome in outcomes], axis=0).reshape(-1, self.slots)
        free, squares = self._room(used.shape) - used, np.array([1 + wide for wide in self.wide] + [1])
        self.more_room = np.where(free < _LEAST_FREE * squares, _FREED * squares - free, 0)
        if self.any_unset:
            self._settle_exponents(self.unset & (used[:, :-1] == 0))

    def _forget_exponents(self) -> None:
        """Of states that are zero still: they are chosen anew, and what was chosen before is no part of the state."""
        if self.any_unset:
            exponent = self.scales.state.exponent.copy()
            exponent[:, :-1][self.unset] = 0
            self.scales.state = replace(self.scales.state, exponent=exponent)

    def _room(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """How many bits integers may use by their limits and those of what is added. That is about as large as a state, but of a
        mean of squares the part by which it does not decay, or, early on, one of the few that there have been."""
        room = np.empty(shape, np.int64)
        room[:] = [*(own.increment_bits for own in self.formats[:-1]), self.format.limit_bits]
        for slot in np.flatnonzero(self.wide).tolist():
            own = self.formats[slot]
            most = max(self.taken.bit_length() - 1, 0)
            gains = [min(gain_bits(float(factor)), most) for factor in np.broadcast_to(self._factors[..., slot], shape[:1])]
            room[:, slot] = [min(own.limit_bits, own.increment_bits + gain) for gain in gains]
        return room

    def _settle_exponents(self, still_zero: NDArray[np.bool_]) -> None:
        """Of states whose first gradients were zeros, where later steps are not looked at: as the largest of the others."""
        now = self.scales.state
        exponent = now.exponent.copy()
        for slot in range(len(self.z)):
            rows, others = still_zero[:, slot], ~still_zero[:, slot]
            exponent[rows, slot] = exponent[others, slot].max() if others.any() else exponent_unseen(self.formats[slot])
        self.scales.state = replace(now, exponent=exponent)
        self.unset = np.zeros_like(self.unset)

    def _choose_exponents(self, gradients: Gradients, given: StepNumbers) -> None:
        """Of states that have been zero so far. This costs a pass over their first gradients."""
        if not self.any_unset:
            return
        now = self.scales.state
        exponent = now.exponent.copy()
        for i, gradient in enumerate(gradients):
            if gradient is None or not self.unset[i].any():
                continue
            seen = self._magnitudes(i, gradient, given)
            factors = np.broadcast_to(given.factors, exponent.shape)[i, :-1]
            for slot, factor in enumerate(factors.tolist()):
                if self.unset[i, slot] and 0 < seen[slot] < math.inf:
                    exponent[i, slot] = exponent_of_increments(seen[slot], factor, self.formats[slot], self.headroom(slot))
        if (exponent != now.exponent).any():
            self.scales.state = replace(now, exponent=exponent)

    def headroom(self, slot: int) -> int | None:
        """Bits to leave above a state's first increments; None: as many as suit its layout."""
        return self.rule.headroom.get(list(self.rule.states)[slot], _SQUARES_ROOM[self.is_late] if self.wide[slot] else None)

    def _magnitudes(self, i: int, gradient: Tensor, given: StepNumbers) -> list[float]:
        """The largest magnitudes of what a step would add to the states of the tensor ``i``, and of its update."""
        factors = np.broadcast_to(given.factors, (len(self.sizes), self.slots))[i]
        h, t = given.of(i)

        def seen(part: slice) -> list[float]:
            g, w = flat(gradient)[part].double(), self.value(i, -1, torch.float64, part=part)
            z = {n: self.value(i, k, torch.float64, part=part).mul_(factors[k]) for k, n in enumerate(self.rule.states)}
            if self.rule.elementwise:
                return magnitudes(self.rule, _part_of(h, part), t, g, w, z)
            form = self.weights[i].shape, self.weights[i].stride()
            z = {name: state.as_strided(*form) for name, state in z.items()}
            return magnitudes(self.rule, h, t, g.as_strided(*form), w.as_strided(*form), z)

        if not self.rule.elementwise:
            return seen(slice(None))
        # float64 copies of a whole tensor would be the run's largest.
        size = _PIECE[self.is_late]
        pieces = [seen(slice(begin, begin + size)) for begin in range(0, max(self.sizes[i], 1), size)]
        largest: list[float] = np.max(pieces, axis=0).tolist()
        return largest

    def _beyond_dtype(self, outcome: Outcome) -> int | None:
        """The first tensor with a weight that was too large to be shown in its dtype, as float16 ends at 65504. Of one that needs
        room its weights say nothing yet."""
        # What the integers can hold bounds the weights, and what they use does more closely; else the weights are read.
        now = self.scales.state
        if now.exponent is self._shown_exponents:
            return None
        bounds = np.ldexp(1.0, now.exponent[:, -1] + self.format.limit_bits)
        if (bounds <= self._largest_shown).all():
            self._shown_exponents = now.exponent
            return None
        for i in np.flatnonzero(bounds > self._largest_shown).tolist():
            if outcome.flags[i]:
                continue
            bound = math.ldexp(self.sigma(i, -1), outcome.used[i][-1])
            if bound > self._largest_shown[i] and not bool(torch.isfinite(flat(self.weights[i])).all()):
                return int(i)
        return None

    def _growth(self, record: Record, outcome: Outcome, gradients: Gradients, beyond: int | None) -> NDArray[np.int64]:
        """How much more room a refused step needs, which has been taken back. Raises if none would help."""
        more = np.zeros((len(self.sizes), self.slots), np.int64)
        exponent = record.scales_after.exponent
        for i, (flags, gradient) in enumerate(zip(outcome.flags, gradients, strict=True)):
            if not flags or gradient is None:
                continue
            seen = self._magnitudes(i, gradient, record.given)
            more[i] = growth(flags, outcome.used[i], seen, exponent[i], self.formats)
            if beyond is None and (not all(map(math.isfinite, seen)) or (exponent[i] + more[i] > self._largest_exponents).any()):
                beyond = i
        error = refusal([self], [gradients], [outcome], beyond)
        if error is not None:
            raise error
        return more

    # Back

    def move_weights(self, record: Record, *, back: bool, with_hash: bool = False, ticket: Ticket | None = None) -> Outcome:
        """The weights back to before the step (the first phase of undoing), or forward again. The hash is theirs alone."""
        return self.moves.move_weights(record, back, with_hash, ticket)

    def undo_states(self, record: Record, gradients: Gradients, with_hash: bool, ticket: Ticket | None = None) -> Outcome:
        """The states back to before the step (the second phase), given the step's gradient. The hash is theirs alone."""
        outcome = self.moves.undo_states(record, gradients, with_hash, ticket)
        record.after = self.scales.state, self.unset, self.more_room
        self.count_as_not_taken(record)
        return outcome

    def redo(self, record: Record, gradients: Gradients) -> None:
        """Takes both phases of undoing back, whatever gradient was used, as long as it is the same one."""
        self.moves.step(record, gradients, False, True, None)
        self.scales.state, self.unset, self.more_room = record.after

    # At rest

    def hash(self) -> int:
        """Of the whole state at rest."""
        nothing = StepNumbers(np.ones(self.slots), np.zeros(self.moves.numbers))
        still = self.record(nothing, [False] * len(self.weights))
        self.taken -= 1
        x = self.move_weights(still, back=True, with_hash=True)
        z = self.undo_states(still, [None] * len(self.weights), with_hash=True)
        read([x, z])
        return combine(x.hash, z.hash)

    def is_empty(self) -> bool:
        """Whether all states are zero and no scale has moved: the state before a first step."""
        return not self.scales.state.count.any() and not any(bool(z.any()) for z in self.z)


def _part_of(settings: Any, part: slice) -> Any:
    """A rule's settings for some of a tensor's weights."""
    own = {name: value[part] if isinstance(value, Tensor) and value.dim() else value for name, value in vars(settings).items()}
    return SimpleNamespace(**own)
