"""A bucket: tensors that share flat integer states, one information buffer and one momentum."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad._ops import ops, refuse_device
from reversible_hypergrad.core.fixed_point import FORMATS, FixedPointFormat
from reversible_hypergrad.reversible.initial import InitialWeights
from reversible_hypergrad.reversible.lateness import Ticket
from reversible_hypergrad.reversible.outcome import Outcome, read

__all__ = ["Bucket", "Coefficients", "Outcome", "Record", "combine", "flat"]


@dataclass(frozen=True)
class Coefficients:
    """One step's ``v' = mu*v + (1-dampening)*(sign*grad + weight_decay*w); w' = w - lr*v'``, in quanta.

    ``gradient`` is velocity quanta per unit of gradient, ``decay`` velocity quanta per quantum of weight, ``lr`` weight
    quanta per quantum of velocity. Powers of two only move the point, so each is one rounding away from its setting.
    """

    gradient: float
    decay: float
    lr: float
    lr_elements: Tensor | None = None  # per weight, flat in memory order, in place of lr

    @staticmethod
    def of(
        layout: FixedPointFormat,
        *,
        lr: float | Tensor,
        weight_decay: float,
        dampening: float,
        maximize: bool = False,
    ) -> "Coefficients":
        """``lr``: a number, or one per weight as a tensor of the weight's shape and strides."""
        share = 1.0 - dampening
        velocity, weight = 2.0**layout.velocity_fraction_bits, 2.0**layout.weight_fraction_bits
        elements = None
        if isinstance(lr, Tensor):
            real = torch.float64 if layout.state_bits == 64 else torch.float32
            elements, lr = (flat(lr).double() * (weight / velocity)).to(real), 0.0
        return Coefficients(
            gradient=(-share if maximize else share) * velocity,
            decay=share * weight_decay * velocity / weight,
            lr=lr * weight / velocity,
            lr_elements=elements,
        )


@dataclass
class Record:
    """What undoing one step of one bucket needs, beside the gradient."""

    momentum: Fraction
    coefficients: tuple[Coefficients, ...]  # one for all tensors, or one each
    active: tuple[bool, ...]  # which tensors had a gradient
    bound: int  # of the accumulators, before the step
    spill_bits: tuple[int, ...]  # per row of a block
    planes: list[Tensor]
    hash_before: int | Outcome | None  # of the state before the step, or who will know it; None: not checked

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)


def flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order, as a view."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


class Bucket:
    """The fixed-point state of ``weights``, all on one device: X, V, the accumulators, and the moves between steps.

    The caller keeps the records and hands them back in reverse order. After every call the visible weights are the
    rounded X. Moves never raise for bad numbers: they report flags and stay exactly invertible. On a GPU they are queued on
    the current stream, and nothing here waits for them but a look at an outcome (see there).
    """

    def __init__(self, weights: Sequence[Tensor], names: Sequence[str], state_bits: int) -> None:
        self.allocate(weights, names, state_bits)
        self.quantize_weights()

    def allocate(self, weights: Sequence[Tensor], names: Sequence[str], state_bits: int) -> None:
        """An all-zero state for ``weights``, to be filled."""
        self.weights = list(weights)
        self.names = list(names)
        self.format = FORMATS[state_bits]
        self.sizes = sizes = [w.numel() for w in self.weights]
        self.offsets = [0, *itertools.accumulate(_core.state_size(n) for n in sizes)]
        self.size = sum(sizes)
        self.lanes = sum(_core.lane_count(n) for n in sizes)
        self.bound = 1
        device = self.weights[0].device
        refuse_device(self.names[0], device)
        self.x = torch.zeros(self.offsets[-1], dtype=self.format.dtype, device=device)
        self.v = torch.zeros_like(self.x)
        self.accumulators = torch.zeros(self.lanes, dtype=self.format.dtype, device=device)
        self.skipped = torch.zeros(sum(_core.block_count(n) for n in sizes), dtype=torch.uint8, device=device)
        self._nothing_skipped = self.skipped[:0]
        self.initial: list[InitialWeights | None] = [None] * len(sizes)

    def quantize_weights(self) -> None:
        """X becomes the rounded visible weights; what rounding lost is kept in ``initial``.

        Raises:
            OverflowError: if a weight is not finite or out of range. Nothing is changed then.
        """
        for weight, name in zip(self.weights, self.names, strict=True):
            largest = flat(weight).abs().max().item() if weight.numel() else 0.0
            # Not "above": a NaN is in no range either.
            if (
                not math.isfinite(largest)
                or round(largest * 2.0**self.format.weight_fraction_bits) >= 2**self.format.weight_limit_bits
            ):
                raise OverflowError(
                    f"{name}: its weights must be finite and below {self.format.weight_range:g} in magnitude, the range of "
                    f"state_bits={self.format.state_bits}; the largest is {largest:g}. " + self.remedy("rescale the parameter")
                )
        for i, weight in enumerate(self.weights):
            part = self.state_of(i, self.x)
            part.copy_((flat(weight).double() * 2.0**self.format.weight_fraction_bits).round_())
            self.initial[i] = InitialWeights.differences(flat(weight), self._visible(part, weight.dtype))

    def remedy(self, otherwise: str) -> str:
        return f"Use state_bits=64, or {otherwise}" if self.format.state_bits == 32 else otherwise.capitalize()

    def _visible(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return (x.double() * 2.0**-self.format.weight_fraction_bits).to(dtype)

    def state_of(self, index: int, state: Tensor) -> Tensor:
        """The part of ``x`` or ``v`` that belongs to the tensor ``index``, flat."""
        return state[self.offsets[index] : self.offsets[index] + self.sizes[index]]

    def resized(self) -> list[str]:
        """Names of the tensors that no longer have as many elements as their state."""
        return [n for n, w, size in zip(self.names, self.weights, self.sizes, strict=True) if w.numel() != size]

    def edited(self, at_start: bool) -> list[str]:
        """Names of the tensors whose visible weights are not the ones of the state; reads everything."""
        names = self.resized()
        for i, weight in enumerate(self.weights):
            if self.names[i] in names:
                continue
            expected = self._visible(self.state_of(i, self.x), weight.dtype)
            initial = self.initial[i]
            if at_start and initial is not None:
                initial.restore(expected)
            if InitialWeights.differences(flat(weight), expected) is not None:
                names.append(self.names[i])
        return names

    def show_weights(self) -> None:
        """The visible weights become the rounded X."""
        for i, weight in enumerate(self.weights):
            flat(weight).copy_(self._visible(self.state_of(i, self.x), weight.dtype))

    def restore_initial(self) -> None:
        """The visible weights of the start, to the last bit. Call when X is back there."""
        for weight, initial in zip(self.weights, self.initial, strict=True):
            if initial is not None:
                initial.restore(flat(weight))

    def step(
        self,
        gradients: Sequence[Tensor | None],
        momentum: Fraction,
        coefficients: tuple[Coefficients, ...],
        hash_before: int | Outcome | None,
        with_hash: bool,
        ticket: Ticket | None = None,
    ) -> tuple[Record, Outcome]:
        """One step, which counts as taken. A tensor whose gradient is None keeps its weights and velocity."""
        n, d = momentum.numerator, momentum.denominator
        bound, spill_bits = _core.plan_pushes(self.bound, n, d, _core.WEIGHTS_PER_LANE, self.format.state_bits)
        planes = [torch.empty(self.lanes * bits // 8, dtype=torch.uint8, device=self.x.device) for bits in spill_bits if bits]
        active = tuple(g is not None for g in gradients)
        record = Record(momentum, coefficients, active, self.bound, tuple(spill_bits), planes, hash_before)
        outcome = self._step(record, gradients, self._nothing_skipped, with_hash, ticket)
        self.bound = bound
        return record, outcome

    def _step(
        self,
        record: Record,
        gradients: Sequence[Tensor | None],
        skipped: Tensor,
        with_hash: bool,
        ticket: Ticket | None = None,
    ) -> Outcome:
        words = self.words()
        rates = self.lr_elements(record)
        ops.sgd_step(*self.arguments(record, gradients), skipped, with_hash, words, rates, *_presented(ticket))
        return Outcome(words)

    def retract(self, record: Record, gradients: Sequence[Tensor | None], ticket: Ticket | None = None) -> None:
        """Takes back the step just taken, with its own gradients. With its ticket only if it was refused: the host need not know,
        and goes on counting it as taken."""
        bound = self.bound
        self.move_weights(record, back=True, ticket=ticket)
        self.undo_velocity(record, gradients, False, ticket)
        if ticket is not None:
            self.bound = bound

    def move_weights(self, record: Record, *, back: bool, with_hash: bool = False, ticket: Ticket | None = None) -> Outcome:
        """X back to before the step (the first phase of undoing), or forward again. The hash is of X alone."""
        words = self.words()
        ops.sgd_move_weights(
            self.weights,
            record.active,
            self.x,
            self.v,
            self.accumulators,
            self.numbers(record),
            back,
            with_hash,
            words,
            self.lr_elements(record),
            *_presented(ticket),
        )
        return Outcome(words)

    def undo_velocity(
        self, record: Record, gradients: Sequence[Tensor | None], with_hash: bool, ticket: Ticket | None = None
    ) -> Outcome:
        """V and the buffer back to before the step (the second phase), given the step's gradient. The hash is of V."""
        words = self.words()
        ops.sgd_undo_velocity(*self.arguments(record, gradients), self.skipped, with_hash, words, *_presented(ticket))
        self.bound = record.bound
        return Outcome(words)

    def redo(self, record: Record, gradients: Sequence[Tensor | None]) -> None:
        """Takes both phases of undoing back, whatever gradient was used, as long as it is the same one."""
        bound, _ = _core.plan_pushes(
            record.bound,
            record.momentum.numerator,
            record.momentum.denominator,
            _core.WEIGHTS_PER_LANE,
            self.format.state_bits,
        )
        self._step(record, gradients, self.skipped, False)
        self.bound = bound

    def hash(self) -> int:
        """Of the whole state at rest."""
        still = Record(Fraction(1), (Coefficients(0.0, 0.0, 0.0),), (False,) * len(self.weights), self.bound, (0,) * 8, [], None)
        x = self.move_weights(still, back=True, with_hash=True)
        v = self.undo_velocity(still, self.weights, with_hash=True)
        read([x, v])
        return combine(x.hash, v.hash)

    def is_empty(self) -> bool:
        """Whether no velocity and no information is left: the state before a first step."""
        return self.has_no_information() and not self.v.any()

    def has_no_information(self) -> bool:
        return self.bound == 1 and not self.accumulators.any()

    def forget(self) -> None:
        """Empties the accumulators: nothing before the present state can be undone any more."""
        self.accumulators.zero_()
        self.bound = 1

    def payload_bits(self) -> float:
        """Bits that the accumulators hold, by their bound."""
        return self.lanes * math.log2(self.bound)

    def arguments(self, record: Record, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
        """What a step and the undoing of its velocity read alike. A weight stands in for a gradient that is not there."""
        return (
            self.weights,
            [weight if g is None else g for g, weight in zip(gradients, self.weights, strict=True)],
            record.active,
            self.x,
            self.v,
            self.accumulators,
            record.planes,
            record.spill_bits,
            self.numbers(record),
            record.momentum.numerator,
            record.momentum.denominator,
        )

    @staticmethod
    def numbers(record: Record) -> list[float]:
        return [number for c in record.coefficients for number in (c.gradient, c.decay, c.lr)]

    def lr_elements(self, record: Record) -> list[Tensor] | None:
        rates = [c.lr_elements for c in record.coefficients]
        if all(rate is None for rate in rates):
            return None
        none = self._nothing_skipped
        return [none if rate is None else rate for rate in rates]

    def words(self) -> Tensor:
        """Where an op writes its outcome: a tensor of its own for each, since on a GPU it is read later."""
        return torch.empty(1 + len(self.sizes), dtype=torch.int64, device=self.x.device)


def _presented(ticket: Ticket | None) -> tuple[Tensor | None, int]:
    return (None, 0) if ticket is None else (ticket.first_refused, ticket.number)


def combine(first: int, second: int) -> int:
    """Hashes of two parts of a state add up, modulo 2^64, as int64."""
    return (first + second + 2**63) % 2**64 - 2**63
