"""The moves of a state under a rule without a program: in torch's operations, one tensor after the other.

The same numbers as a program's kernels would give, operation for operation; see csrc/cpu/worker.h. It takes some dozens of passes
over memory where a kernel takes one. Of a refused step the integers may be other ones: what does not fit counts as 0 here.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad._ops import ops, program_numbers
from reversible_hypergrad.reversible.bit_planes import contract, expand
from reversible_hypergrad.reversible.lateness import Ticket
from reversible_hypergrad.reversible.moves import Gradients, Moves
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.record import Record
from reversible_hypergrad.reversible.signs import packed_signs, unpacked_signs
from reversible_hypergrad.rules.functions import correctly_rounded
from reversible_hypergrad.rules.step import signs_of

if TYPE_CHECKING:
    from reversible_hypergrad.reversible.state import State

__all__ = ["OperationMoves"]


class OperationMoves(Moves):
    """By the functions of the state's rule."""

    queues = False

    def __init__(self, state: "State") -> None:
        super().__init__(state)
        self.real = torch.float64 if state.format.state_bits == 64 else torch.float32

    def step(self, record: Record, gradients: Gradients, with_hash: bool, again: bool, ticket: Ticket | None) -> Outcome:
        assert ticket is None
        words = self.words().zero_()
        record.logged = [None] * len(gradients)
        if self.state.rule.keeps_signs and not again:
            record.signs = [self.state.no_planes] * len(gradients)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                words[self._row(i)] = _Tensor(self, record, i).step(gradient, again)
        return self._outcome(words, with_hash, weights=True, states=True)

    def move_weights(self, record: Record, back: bool, with_hash: bool, ticket: Ticket | None) -> Outcome:
        words = self.words().zero_()
        for i, active in enumerate(record.active):
            if active:
                words[self._row(i)] = _Tensor(self, record, i).move_weight(back)
        return self._outcome(words, with_hash, weights=True, states=False)

    def undo_states(self, record: Record, gradients: Gradients, with_hash: bool, ticket: Ticket | None) -> Outcome:
        words = self.words().zero_()
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                words[self._row(i)] = _Tensor(self, record, i).undo_states(gradient)
        return self._outcome(words, with_hash, weights=False, states=True)

    def _row(self, i: int) -> slice:
        width = 2 + len(self.state.z)
        return slice(1 + i * width, 1 + (i + 1) * width)

    def _outcome(self, words: Tensor, with_hash: bool, weights: bool, states: bool) -> Outcome:
        if with_hash:
            words[0] = (
                int(weights and self._hash(self.state.x)) + (self._hash_of_states() if states else 0) + 2**63
            ) % 2**64 - 2**63
        return Outcome(words, len(self.state.sizes))

    def _hash_of_states(self) -> int:
        # Weighted, so that states which change places show.
        return sum((2 * k + 1) * self._hash(z, state=True) for k, z in enumerate(self.state.z))

    def _hash(self, integers: Tensor, state: bool = False) -> int:
        """The kernels' hash of integers at rest; those of the program "sgd" know one state."""
        own = self.state
        count = len(own.sizes)
        numbers = torch.ones(count, 3 + program_numbers("sgd"), dtype=torch.float64)
        shifts = torch.zeros(count, 5, dtype=torch.int64)
        words = torch.empty(1 + 3 * count, dtype=torch.int64, device=integers.device)
        none = own.skipped[:0]
        if state:
            ops.undo_states("sgd", own.weights, [], integers, [integers], numbers, shifts, [], none, none, True, words)
        else:
            ops.move_weights("sgd", own.weights, integers, [integers], numbers, shifts, [], none, True, True, words)
        return int(words[0])


class _Tensor:
    """One tensor under one step."""

    def __init__(self, moves: OperationMoves, record: Record, i: int) -> None:
        state = self.state = moves.state
        self.rule, self.real, self.record, self.i = state.rule, moves.real, record, i
        self.h, self.t = record.given.of(i)
        *sigmas, self.before, self.after = record.numbers[i, : len(state.z) + 2].tolist()
        self.sigma = dict(zip(self.rule.states, sigmas, strict=True))
        self.integers = {name: state.part(i, z) for name, z in zip(self.rule.states, state.z, strict=True)}
        self.slots = {name: slot for slot, name in enumerate((*self.rule.states, "weight"))}
        self.x = state.part(i, state.x)
        moves_of = record.shifts[i, 1:].view(-1, 2).tolist()
        self.shifts = dict(zip((*self.rule.states, "weight"), moves_of, strict=True))
        self.planes = self._planes()
        self.flags = 0
        first = sum(_core.block_count(n) for n in state.sizes[:i])
        self.skipped = state.skipped[first : first + _core.block_count(state.sizes[i])]

    def _planes(self) -> dict[str, Tensor]:
        """Views of the record's planes, by slot."""
        own = {}
        offset = int((self.record.shifts[: self.i, 1::2].sum(1) * self.state.plane_bytes[: self.i]).sum())
        for name, (shift, _) in self.shifts.items():
            size = shift * int(self.state.plane_bytes[self.i])
            own[name] = self.record.planes[offset : offset + size]
            offset += size
        return own

    # Values

    def _seen(self, flat: Tensor) -> Tensor:
        """As the rule's functions take it."""
        weight = self.state.weights[self.i]
        return flat if self.rule.elementwise else flat.as_strided(weight.shape, weight.stride())

    def _flat(self, seen: Tensor) -> Tensor:
        if self.rule.elementwise:
            return seen
        weight = self.state.weights[self.i]
        own = torch.empty(weight.numel(), dtype=seen.dtype, device=seen.device)
        own.as_strided(weight.shape, weight.stride()).copy_(seen)
        return own

    def _weight_value(self, sigma: float) -> Tensor:
        return self._seen(self.x.to(self.real) * sigma)

    def _value(self, name: str) -> Tensor:
        """Squares are at least one quantum, so that nothing is divided by their root 0, and products of double, whose range they
        need."""
        if self.state.wide[self.slots[name]]:
            return self._seen((self.integers[name].clamp(min=1).double() * self.sigma[name]).to(self.real))
        return self._seen(self.integers[name].to(self.real) * self.sigma[name])

    def _values(self) -> dict[str, Tensor]:
        return {name: self._value(name) for name in self.integers}

    def _gradient(self, gradient: Tensor) -> Tensor:
        return self._seen(gradient.detach().as_strided((gradient.numel(),), (1,)).to(self.real))

    def _rounded(self, value: Tensor, name: str, sigma: float, flag: int) -> Tensor:
        """In quanta; what does not fit counts as 0, and raises the flag. A square that is not 0 is one quantum at least."""
        own, slot = self._flat(value), self.slots[name]
        is_square, layout = name != "weight" and self.state.wide[slot], self.state.formats[slot]
        scaled = ((own.double() if is_square else own) * (1.0 / sigma)).round_()
        fits = scaled.abs() < 2.0**layout.increment_bits
        if not bool(fits.all()):
            self.flags |= flag
            scaled = torch.where(fits, scaled, 0.0)
        if is_square:
            scaled = torch.where((own != 0) & (scaled == 0), 1.0, scaled)
        return scaled.to(layout.torch_dtype)

    def _used(self, name: str, flag: int) -> int:
        """A word whose bits tell how many the largest integer needs."""
        integers = self.x if name == "weight" else self.integers[name]
        if not integers.numel():
            return 0
        low, high = (int(extreme) for extreme in torch.aminmax(integers))
        bits = max(high.bit_length(), (~low).bit_length() if low < 0 else 0)
        if bits > self.state.formats[self.slots[name]].limit_bits:
            self.flags |= flag
        word = 1 << bits if (low, high) != (0, 0) else 0
        return (word + 2**63) % 2**64 - 2**63

    def _contracted(self, integers: Tensor, name: str) -> Tensor:
        shift, centre = self.shifts[name]
        return contract(integers, shift, centre, self.planes[name])

    def _expanded(self, integers: Tensor, name: str) -> Tensor:
        shift, centre = self.shifts[name]
        return expand(integers, shift, centre, self.planes[name])

    # Moves

    @correctly_rounded
    def step(self, gradient: Tensor, again: bool) -> Tensor:
        g, w = self._gradient(gradient), self._weight_value(self.before)
        kept = {name: z.clone() for name, z in self.integers.items()} if again and bool(self.skipped.any()) else {}
        planes = {name: self.planes[name].clone() for name in kept if self.shifts[name][0]}
        for name, z in self.integers.items():
            z.copy_(self._contracted(z, name))
        if kept:
            # What was refused on the way back is still as it was after the step, and so are the bits that left it then.
            self._keep_skipped(kept)
            self._keep_skipped_planes(planes)
        values = self._values()
        if not again:  # else the gradient may not be the one that the step saw, but the record has its signs
            self._keep_signs(signs_of(self.rule, self.h, self.t, g, w, values))
        for name, increment in self.rule.increments(self.h, self.t, g, w, values):
            q = self._rounded(increment, name, self.sigma[name], _core.BAD_INCREMENT)
            self.integers[name] += self._unless_skipped(q) if kept else q
            values[name] = self._value(name)
        assert self.record.logged is not None
        self.record.logged[self.i] = self.rule.logged(self.h, self.t, w, values)
        used = [self._used(name, _core.STATE_OVERFLOW) for name in self.integers]
        row = self.move_weight(back=False)
        return torch.tensor([self.flags, *used, int(row[-1])])

    @correctly_rounded
    def move_weight(self, back: bool) -> Tensor:
        update = self.rule.update(self.h, self.t, self._values(), self._logged())
        change = self._rounded(update, "weight", self.after, 0 if back else _core.BAD_CHANGE)
        if back:
            self.x.copy_(self._expanded(self.x + change, "weight"))
        else:
            self.x.copy_(self._contracted(self.x, "weight") - change)
        self._show(self.before if back else self.after)
        used = 0 if back else self._used("weight", _core.WEIGHT_OVERFLOW)
        return torch.tensor([0 if back else self.flags, *[0] * len(self.integers), used])

    def _logged(self) -> Any:
        """What the update is given beside the new states."""
        record, size = self.record, int(self.state.plane_bytes[self.i])
        if record.signs is not None:
            return self._seen(unpacked_signs(record.signs[self.i], self.x.numel(), size, self.real))
        return None if record.logged is None else record.logged[self.i]

    def _keep_signs(self, signs: Tensor | None) -> None:
        if signs is not None:
            assert self.record.signs is not None
            self.record.signs[self.i] = packed_signs(self._flat(signs), int(self.state.plane_bytes[self.i]))

    @correctly_rounded
    def undo_states(self, gradient: Tensor) -> Tensor:
        g, w = self._gradient(gradient), self._weight_value(self.before)
        after = {name: z.clone() for name, z in self.integers.items()} if self._shifts() else {}
        foreign = torch.zeros(self.x.numel(), dtype=torch.bool, device=self.x.device)
        for name in reversed(self.integers):
            increment = self._increment_of(name, g, w)
            self.integers[name] -= self._rounded(increment, name, self.sigma[name], _core.BAD_INCREMENT)
            slot = self.slots[name]
            limit = 2 ** (self.state.formats[slot].limit_bits - self.shifts[name][0])
            foreign |= (self.integers[name] < (0 if self.state.wide[slot] else -limit)) | (self.integers[name] > limit)
        self.skipped.zero_()
        if bool(foreign.any()):
            self.flags |= _core.FOREIGN_GRADIENT
            if after:
                self.skipped.copy_(_blocks(foreign).any(1))
        for name, z in self.integers.items():
            z.copy_(self._expanded(z, name))
        if after:
            self._keep_skipped(after)
        return torch.tensor([self.flags, *[0] * (1 + len(self.integers))])

    def _increment_of(self, wanted: str, g: Tensor, w: Tensor) -> Tensor:
        """Of one state, when those before it are new and those behind it are decayed only."""
        for name, increment in self.rule.increments(self.h, self.t, g, w, self._values()):
            if name == wanted:
                return increment
        raise ValueError(
            f"optimizer: expected {type(self.rule).__name__}.increments to yield every state in the order of `states`, got none "
            f"for {wanted!r}. Yield zeros for a state that gets nothing"
        )

    def _shifts(self) -> bool:
        return any(self.shifts[name][0] for name in self.integers)

    def _keep_skipped(self, kept: Mapping[str, Tensor]) -> None:
        mask = self._mask()
        for name, z in self.integers.items():
            z.copy_(torch.where(mask, kept[name], z))

    def _keep_skipped_planes(self, kept: Mapping[str, Tensor]) -> None:
        mask = self.skipped.bool().repeat_interleave(_core.BLOCK_SIZE // 8)[: int(self.state.plane_bytes[self.i])]
        for name, planes in kept.items():
            own = self.planes[name].view(self.shifts[name][0], -1)
            own.copy_(torch.where(mask, planes.view_as(own), own))

    def _unless_skipped(self, q: Tensor) -> Tensor:
        return torch.where(self._mask(), 0, q)

    def _mask(self) -> Tensor:
        """The weights whose block is skipped."""
        return self.skipped.bool().repeat_interleave(_core.BLOCK_SIZE)[: self.x.numel()]

    def _show(self, sigma: float) -> None:
        weight = self.state.weights[self.i]
        real = torch.float64 if weight.dtype == torch.float64 else self.real
        value = self.x.to(real) * sigma
        value = value.float() if weight.dtype.itemsize == 2 else value
        weight.detach().as_strided((weight.numel(),), (1,)).copy_(value)


def _blocks(flags: Tensor) -> Tensor:
    """A row per block, the last one filled up."""
    rows = math.ceil(flags.numel() / _core.BLOCK_SIZE)
    return torch.nn.functional.pad(flags, (0, rows * _core.BLOCK_SIZE - flags.numel())).view(rows, _core.BLOCK_SIZE)
