"""Buckets of integer state for the dispatcher ops, and their steps. Used by tests/core, tests/cuda and tests/gpu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch

from reversible_hypergrad._ops import ops as OPS

INSTRUCTION_SETS = OPS.instruction_sets().split()
NONE_SKIPPED = torch.empty(0, dtype=torch.uint8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "float16": torch.float16}
STATE_DTYPES = {64: torch.int64, 32: torch.int32}
REAL_DTYPES = {64: torch.float64, 32: torch.float32}
BITS_OF = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
WIDTHS = pytest.mark.parametrize("state_bits", [64, 32], ids=lambda bits: f"state{bits}")
EACH_INSTRUCTION_SET = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)

# 1 is 2 to these in quanta of a state that scales like the gradient and of the weight, where a test says nothing else; and in
# those of a wide state.
FRACTION_BITS = {64: (40, 47), 32: (23, 26)}
WIDE_FRACTION_BITS = 42
RULE = "sgd"
SLOTS = len(oracle.SGD.powers) + 1

GUARD = 64  # elements around every tensor that no op may write


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(BITS_OF[a.element_size()]), b.view(BITS_OF[b.element_size()]))


@dataclass
class Step:
    """What one step is given; a tensor whose gradient is None takes no part."""

    gradients: list[torch.Tensor | None]
    numbers: list[tuple[float, float, float]]  # share, decay and lr of each tensor
    momentum: float | list[float]  # of all tensors, or of each
    elements: list[list[torch.Tensor | None]] | None = None  # per tensor and number: one per weight in place of the number
    weight_factor: float = 1.0  # decays the scale of all weights, which SGD itself never does
    rescale: list[tuple[int, int]] | None = None  # further bits by which velocities and weights are shifted, of each tensor

    def plan(self, scales: list[list[oracle.Scale]]) -> list[oracle.TensorStep | None]:
        momenta = self.momentum if isinstance(self.momentum, list) else [self.momentum] * len(self.gradients)
        factors = [
            None if g is None else (momentum, self.weight_factor) for g, momentum in zip(self.gradients, momenta, strict=True)
        ]
        elements = self.elements and [[None if e is None else e.double().tolist() for e in own] for own in self.elements]
        return oracle.plan(oracle.SGD, scales, factors, self.numbers, elements, self.rescale)


def decays_of(rule, momentum: float | tuple[float, ...]) -> tuple[float, ...]:
    """Of the states: a tuple's own; or `momentum`, and of a state like a square so much that its root keeps no less than the
    others do: what is divided by that stays small."""
    if isinstance(momentum, tuple):
        return momentum
    return tuple(momentum if power == 1 else 1.0 - (1.0 - momentum) ** 2 for power in rule.powers)


@dataclass
class Record:
    """What undoing a step needs beside its gradients."""

    numbers: torch.Tensor
    shifts: torch.Tensor
    planes: torch.Tensor
    before: list[list[oracle.Scale]]
    after: list[list[oracle.Scale]]


ASKEW = frozenset({"x", "v", "weights", "planes"})


class Bucket:
    """The integer state of a bucket, each tensor inside a guarded and, as far as named in `askew`, misaligned allocation."""

    def __init__(
        self,
        x: list[torch.Tensor],
        v: list[torch.Tensor],
        dtypes: list[str],
        state_bits: int,
        ops=OPS,
        device: str = "cpu",
        askew: frozenset[str] = ASKEW,
        scales: list[list[oracle.Scale]] | None = None,
    ):
        self.state_bits, self.dtypes = state_bits, dtypes
        self.ops, self.device, self.askew = ops, device, askew
        self._guards: list[tuple[torch.Tensor, int, int]] = []
        self.sizes = [len(part) for part in x]
        self.scales = scales or [[oracle.Scale(-bits) for bits in FRACTION_BITS[state_bits]] for _ in x]
        spaces = [oracle.state_size(size) for size in self.sizes]
        self.offsets = [sum(spaces[:i]) for i in range(len(spaces))]
        self.x, self.v = (self._guarded(name, sum(spaces), STATE_DTYPES[state_bits]) for name in ("x", "v"))
        self.weights = [self._guarded("weights", size, DTYPES[d]) for size, d in zip(self.sizes, dtypes, strict=True)]
        self.outcome = torch.full([1 + len(x) * (1 + SLOTS)], -1, dtype=torch.int64, device=device)
        self.skipped = torch.full([sum(map(oracle.block_count, self.sizes))], 77, dtype=torch.uint8, device=device)
        for parts, target in ((x, self.x), (v, self.v)):
            target.zero_()
            for part, mine in zip(parts, self.split(target), strict=True):
                mine.copy_(part)
        self.show()

    def show(self) -> None:
        """Writes the visible weights, as a step leaves them."""
        for visible, part, scales in zip(self.weights, self.split(self.x), self.scales, strict=True):
            sigma, real = scales[-1].sigma, REAL_DTYPES[self.state_bits]
            if visible.dtype == torch.float64:
                visible.copy_(part.double() * sigma)
            else:
                visible.copy_((part.to(real) * torch.tensor(sigma, dtype=real, device=self.device)).float().to(visible.dtype))

    def _guarded(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        start = GUARD + 1 if name in self.askew else GUARD
        whole = torch.full([size + 2 * GUARD + 2], 77, dtype=dtype, device=self.device)
        self._guards.append((whole, start, size))
        return whole[start : start + size]

    def split(self, state: torch.Tensor) -> list[torch.Tensor]:
        return [state[start : start + size] for start, size in zip(self.offsets, self.sizes, strict=True)]

    def padding(self, state: torch.Tensor) -> torch.Tensor:
        keep = torch.ones(len(state), dtype=torch.bool)
        for start, size in zip(self.offsets, self.sizes, strict=True):
            keep[start : start + size] = False
        return state.cpu()[keep]

    def assert_guards(self) -> None:
        """Nothing beside the tensors was written, nor the padding between them."""
        for whole, start, size in self._guards:
            assert bool((whole[:start] == 77).all())
            assert bool((whole[start + size :] == 77).all())
        for state in (self.x, self.v):
            assert not self.padding(state).any()

    def tensors(self) -> list[torch.Tensor]:
        return [self.x, self.v, *self.weights]

    def snapshot(self) -> list[torch.Tensor]:
        return [t.clone() for t in self.tensors()]

    def assert_equals(self, snapshot: list[torch.Tensor]) -> None:
        names = ["X", "V", *(f"weights[{i}]" for i in range(len(self.weights)))]
        for name, mine, expected in zip(names, self.tensors(), snapshot, strict=True):
            assert same_bits(mine, expected), f"{name} differs"

    @property
    def hash(self) -> int:
        return int(self.outcome[0])

    @property
    def flags(self) -> list[int]:
        return [row[0] for row in self._words()]

    @property
    def used(self) -> list[list[int]]:
        return [row[1:] for row in self._words()]

    def _words(self) -> list[list[int]]:
        return self.outcome[1:].view(len(self.sizes), 1 + SLOTS).tolist()

    # Steps ---------------------------------------------------------------------------------------------------------------

    def record(self, step: Step) -> Record:
        """The host's part of a step, and room for its planes."""
        plan = step.plan(self.scales)
        numbers, shifts, room = [], [], 0
        for one, own, size in zip(plan, step.numbers, self.sizes, strict=True):
            if one is None:  # nothing here is looked at
                numbers.append([float("nan")] * (SLOTS + 1 + len(own)))
                shifts.append([0] * (1 + 2 * SLOTS))
                continue
            sigmas = [scale.sigma for scale in one.after]
            numbers.append([*sigmas[:-1], one.before[-1].sigma, sigmas[-1], *own])
            shifts.append([1, *(number for shift in one.shifts for number in shift)])
            room += sum(k for k, _ in one.shifts) * -(-size // 8)
        return Record(
            torch.tensor(numbers, dtype=torch.float64),
            torch.tensor(shifts, dtype=torch.int64),
            self._guarded("planes", room, torch.uint8),
            [list(own) for own in self.scales],
            [list(own) if one is None else one.after for one, own in zip(plan, self.scales, strict=True)],
        )

    def gradients(self, step: Step) -> list[torch.Tensor]:
        return [torch.empty(0) if g is None else g.to(self.device) for g in step.gradients]

    def elements(self, step: Step) -> list[torch.Tensor]:
        if step.elements is None:
            return []
        none = torch.empty(0, dtype=REAL_DTYPES[self.state_bits], device=self.device)
        return [none if e is None else e.to(self.device) for own in step.elements for e in own]

    def step(self, step: Step, skipped: torch.Tensor = NONE_SKIPPED, record: Record | None = None, **ticket) -> Record:
        """One step, planned here unless `record` says how it went before."""
        record = record or self.record(step)
        given = record.numbers, record.shifts, self.elements(step), record.planes, skipped.to(self.device), True, self.outcome
        self.ops.step(RULE, self.weights, self.gradients(step), self.x, [self.v], *given, **ticket)
        self.scales = [list(own) for own in record.after]
        return record

    def move(self, step: Step, record: Record, back: bool, **ticket) -> None:
        given = record.numbers, record.shifts, self.elements(step), record.planes, back, True, self.outcome
        self.ops.move_weights(RULE, self.weights, self.x, [self.v], *given, **ticket)

    def undo_states(self, step: Step, record: Record, **ticket) -> None:
        given = record.numbers, record.shifts, self.elements(step), record.planes, self.skipped, True, self.outcome
        self.ops.undo_states(RULE, self.weights, self.gradients(step), self.x, [self.v], *given, **ticket)
        self.scales = [list(own) for own in record.before]

    def undo(self, step: Step, record: Record, **ticket) -> None:
        self.move(step, record, back=True, **ticket)
        self.undo_states(step, record, **ticket)


# Problems ------------------------------------------------------------------------------------------------------------


def fraction_bits(rule, state_bits: int) -> list[int]:
    """Of all slots."""
    velocity, weight = FRACTION_BITS[state_bits]
    return [*(velocity if power == 1 else WIDE_FRACTION_BITS for power in rule.powers), weight]


def units(state_bits: int) -> tuple[int, int]:
    """Quanta of velocity and of weight in one."""
    velocity, weight = FRACTION_BITS[state_bits]
    return 2**velocity, 2**weight


def integers(rng: np.random.Generator, limit: int, size: int, state_bits: int) -> torch.Tensor:
    values = torch.from_numpy(rng.integers(-limit + 1, limit, size)).to(STATE_DTYPES[state_bits])
    values[: min(size, 4)] = torch.tensor([limit - 1, 1 - limit, 0, -1])[: min(size, 4)]
    return values


def random_integers(rng: np.random.Generator, sizes, state_bits: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """X and V between -1 and 1."""
    velocity, weight = units(state_bits)
    x = [integers(rng, weight, size, state_bits) for size in sizes]
    return x, [integers(rng, velocity, size, state_bits) for size in sizes]


def normal_gradients(rng, sizes, dtypes, takes_part, scale=1.0) -> list[torch.Tensor | None]:
    """Normal numbers, a few of them tiny (subnormal in some formats) or of one to three magnitudes more."""
    out = []
    for size, dtype, on in zip(sizes, dtypes, takes_part, strict=True):
        g = rng.standard_normal(size)
        g *= 10.0 ** rng.choice([0, -3, -6, -40, -310, 0.5], size, p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
        out.append(torch.from_numpy(g * scale).to(DTYPES[dtype]) if on else None)
    return out


def random_elements(rng, size: int, low: float, high: float, state_bits: int) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(low, high, size)).to(REAL_DTYPES[state_bits])


CHANGING = (0.9, 0.1, 0.99, 0.5, 1.0, 2.0**-16, 0.8731)


def momentum_schedule(name: str, steps: int) -> list[float]:
    """One momentum throughout, a slow one with 0.1 now and then, so that it shifts, too; or one that changes every step."""
    if name == "changing":
        return [CHANGING[t % len(CHANGING)] for t in range(steps)]
    momentum = float(name)
    return [0.1 if momentum > 0.95 and t % 8 < 2 else momentum for t in range(steps)]


# Flags ----------------------------------------------------------------------------------------------------------------

FLAG_SIZES = [40, 700, 1030]
FLAG_DTYPES = ["float64", "float32", "bfloat16"]


def flagged_problem(state_bits: int, momentum: float, steps: int = 6):
    """A bucket under way, and one more ordinary step to be spoilt by the test."""
    rng = np.random.default_rng(5)
    bucket = Bucket(*random_integers(rng, FLAG_SIZES, state_bits), FLAG_DTYPES, state_bits)
    numbers = [(0.5, 0.02, 0.01 * (i + 1)) for i in range(3)]
    for _ in range(steps):
        bucket.step(Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), numbers, 0.1))
        assert bucket.flags == [0, 0, 0]
    return bucket, Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), numbers, momentum), rng


def one_weight_of_20(state_bits: int, x: int, v: int) -> Bucket:
    """Weight 11 has these integers, all others 0; the scales are 1."""
    states = [torch.zeros(20, dtype=STATE_DTYPES[state_bits]) for _ in range(2)]
    states[0][11], states[1][11] = x, v
    return Bucket(*([s] for s in states), ["float64"], state_bits, scales=[[oracle.Scale(), oracle.Scale()]])


def one_gradient_of_20(gradient: float, share: float = 1.0, lr: float = 0.0, momentum: float = 1.0) -> Step:
    gradients = torch.zeros(20, dtype=torch.float64)
    gradients[11] = gradient
    return Step([gradients], [(share, 0.0, lr)], momentum)


def assert_flags(bucket: Bucket, expected: list[int]) -> None:
    """Exactly these flags; but what a bad increment makes of V and X may leave the range or not."""
    bad = oracle.BAD_INCREMENT
    assert [
        bad if flags & bad and wanted == bad else flags for flags, wanted in zip(bucket.flags, expected, strict=True)
    ] == expected


def assert_flagged_step_is_undone(bucket: Bucket, step: Step, expected: list[int]) -> None:
    start = bucket.snapshot()
    record = bucket.step(step)
    assert_flags(bucket, expected)
    bucket.undo(step, record)
    bucket.assert_equals(start)
    bucket.assert_guards()


# Dispatcher -----------------------------------------------------------------------------------------------------------


def sample(state_bits: int) -> dict[str, tuple]:
    """Arguments of the ops, in order and without the optional ones. The middle tensor takes no part."""
    bucket, step, _ = flagged_problem(state_bits, 0.1)
    gradients = list(step.gradients)
    step.gradients[1] = None
    step.rescale = [(0, 1)] * 3
    record = bucket.record(step)
    assert len(record.planes)
    record.numbers.nan_to_num_()
    given = record.numbers, record.shifts, [], record.planes
    state = bucket.x, [bucket.v]
    bucket.skipped.zero_()
    return {
        "step": (RULE, bucket.weights, gradients, *state, *given, NONE_SKIPPED, True, bucket.outcome),
        "move_weights": (RULE, bucket.weights, *state, *given, True, True, bucket.outcome),
        "undo_states": (RULE, bucket.weights, gradients, *state, *given, bucket.skipped, True, bucket.outcome),
    }
