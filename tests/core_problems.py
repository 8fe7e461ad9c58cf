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


def each_rule(*names: str, sgd=((),), adam=((),)):
    """Parametrizes a test by the rule, and by further arguments of these names: a row each."""
    rows = [pytest.param(oracle.SGD, *row) for row in sgd]
    rows += [pytest.param(oracle.Adam, *row) for row in adam]
    return pytest.mark.parametrize(("rule", *names), rows)


EACH_RULE = each_rule()

GUARD = 64  # elements around every tensor that no op may write


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(BITS_OF[a.element_size()]), b.view(BITS_OF[b.element_size()]))


@dataclass
class Step:
    """What one step is given; a tensor whose gradient is None takes no part."""

    gradients: list[torch.Tensor | None]
    numbers: list[tuple[float, ...]]  # the rule's, of each tensor
    momentum: float | tuple[float, ...] | list[float | tuple[float, ...]]  # of all tensors, or of each; see decays_of
    elements: list[list[torch.Tensor | None]] | None = None  # per tensor and number: one per weight in place of the number
    weight_factor: float = 1.0  # decays the scale of all weights, which no rule here ever does
    rescale: list[tuple[int, ...]] | None = None  # further bits by which all states, or each, and weights are shifted, per tensor

    def plan(self, scales: list[list[oracle.Scale]], rule) -> list[oracle.TensorStep | None]:
        momenta = self.momentum if isinstance(self.momentum, list) else [self.momentum] * len(self.gradients)
        factors = [
            None if g is None else (*decays_of(rule, momentum), self.weight_factor)
            for g, momentum in zip(self.gradients, momenta, strict=True)
        ]
        elements = self.elements and [[None if e is None else e.double().tolist() for e in own] for own in self.elements]
        rescale = self.rescale and [(*by[:-1] * (len(rule.powers) // len(by[:-1])), by[-1]) for by in self.rescale]
        return oracle.plan(rule, scales, factors, self.numbers, elements, rescale)


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


ASKEW = frozenset({"x", "states", "weights", "planes"})


class Bucket:
    """The integer state of a bucket, each tensor inside a guarded and, as far as named in `askew`, misaligned allocation.

    Args:
        x: of each tensor.
        states: of each state of the rule, of each tensor.
    """

    def __init__(
        self,
        x: list[torch.Tensor],
        states: list[list[torch.Tensor]],
        dtypes: list[str],
        state_bits: int,
        ops=OPS,
        device: str = "cpu",
        askew: frozenset[str] = ASKEW,
        scales: list[list[oracle.Scale]] | None = None,
        rule=oracle.SGD,
    ):
        self.rule, self.state_bits, self.dtypes = rule, state_bits, dtypes
        self.ops, self.device, self.askew = ops, device, askew
        self._guards: list[tuple[torch.Tensor, int, int]] = []
        self.sizes = [len(part) for part in x]
        self.scales = scales or [[oracle.Scale(-bits) for bits in fraction_bits(rule, state_bits)] for _ in x]
        spaces = [oracle.state_size(size) for size in self.sizes]
        self.offsets = [sum(spaces[:i]) for i in range(len(spaces))]
        *of_states, of_x = slot_dtypes(rule, state_bits)
        self.x = self._guarded("x", sum(spaces), of_x)
        self.states = [self._guarded("states", sum(spaces), dtype) for dtype in of_states]
        self.weights = [self._guarded("weights", size, DTYPES[d]) for size, d in zip(self.sizes, dtypes, strict=True)]
        self.outcome = torch.full([1 + len(x) * self.words], -1, dtype=torch.int64, device=device)
        self.skipped = torch.full([sum(map(oracle.block_count, self.sizes))], 77, dtype=torch.uint8, device=device)
        for parts, target in zip((x, *states), (self.x, *self.states), strict=True):
            target.zero_()
            for part, mine in zip(parts, self.split(target), strict=True):
                mine.copy_(part)
        self.show()

    @property
    def v(self) -> torch.Tensor:
        """The first state."""
        return self.states[0]

    @property
    def words(self) -> int:
        """Of the outcome, per tensor."""
        return 1 + len(self.rule.powers) + 1

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
        for state in (self.x, *self.states):
            assert not self.padding(state).any()

    def tensors(self) -> list[torch.Tensor]:
        return [self.x, *self.states, *self.weights]

    def snapshot(self) -> list[torch.Tensor]:
        return [t.clone() for t in self.tensors()]

    def assert_equals(self, snapshot: list[torch.Tensor]) -> None:
        names = ["X", *(f"states[{s}]" for s in range(len(self.states))), *(f"weights[{i}]" for i in range(len(self.weights)))]
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
        return self.outcome[1:].view(len(self.sizes), self.words).tolist()

    # Steps ---------------------------------------------------------------------------------------------------------------

    def record(self, step: Step) -> Record:
        """The host's part of a step, and room for its planes."""
        plan, slots = step.plan(self.scales, self.rule), len(self.rule.powers) + 1
        numbers, shifts, room = [], [], 0
        for one, own, size in zip(plan, step.numbers, self.sizes, strict=True):
            if one is None:  # nothing here is looked at
                numbers.append([float("nan")] * (slots + 1 + len(own)))
                shifts.append([0] * (1 + 2 * slots))
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
        self.ops.step(self.rule.name, self.weights, self.gradients(step), self.x, self.states, *given, **ticket)
        self.scales = [list(own) for own in record.after]
        return record

    def move(self, step: Step, record: Record, back: bool, **ticket) -> None:
        given = record.numbers, record.shifts, self.elements(step), record.planes, back, True, self.outcome
        self.ops.move_weights(self.rule.name, self.weights, self.x, self.states, *given, **ticket)

    def undo_states(self, step: Step, record: Record, **ticket) -> None:
        given = record.numbers, record.shifts, self.elements(step), record.planes, self.skipped, True, self.outcome
        self.ops.undo_states(self.rule.name, self.weights, self.gradients(step), self.x, self.states, *given, **ticket)
        self.scales = [list(own) for own in record.before]

    def undo(self, step: Step, record: Record, **ticket) -> None:
        self.move(step, record, back=True, **ticket)
        self.undo_states(step, record, **ticket)


# Problems ------------------------------------------------------------------------------------------------------------


def fraction_bits(rule, state_bits: int) -> list[int]:
    """Of all slots."""
    velocity, weight = FRACTION_BITS[state_bits]
    return [*(velocity if power == 1 else WIDE_FRACTION_BITS for power in rule.powers), weight]


def slot_dtypes(rule, state_bits: int) -> list[torch.dtype]:
    return [STATE_DTYPES[layout.bits] for layout in oracle.layouts_of(rule, state_bits)]


def zeros(rule, state_bits: int, size: int) -> list[torch.Tensor]:
    """Integers of all slots of a tensor."""
    return [torch.zeros(size, dtype=dtype) for dtype in slot_dtypes(rule, state_bits)]


# Adam's scale (1/sqrt(1 - 0.999^3), the third step's, among them), eps and root_eps.
DENOMINATORS = [(1.0, 1e-8, 0.0), (18.27, 0.0, 0.0), (1.05, 0.5, 0.0), (0.8, 1e-8, 1e-7), (1.0, 30.0, 2.0)]


def numbers_of(rule, share: float, decay: float, lr: float, denominator: int = 0) -> tuple[float, ...]:
    """A rule's numbers for one tensor. Adam's share of squares fits the decays that `decays_of` gives it."""
    if rule is oracle.SGD:
        return share, decay, lr
    return share, share * share, decay, lr, *DENOMINATORS[denominator % len(DENOMINATORS)]


def undivided(rule, share: float, decay: float, lr: float, share_of_squares: float = 0.0) -> tuple[float, ...]:
    """The rule's numbers with which X and its first state move as in SGD: Adam divides by 1."""
    return (share, decay, lr) if rule is oracle.SGD else (share, share_of_squares, decay, lr, 0.0, 1.0, 0.0)


def units(state_bits: int) -> tuple[int, int]:
    """Quanta of velocity and of weight in one."""
    velocity, weight = FRACTION_BITS[state_bits]
    return 2**velocity, 2**weight


def integers(rng: np.random.Generator, limit: int, size: int, state_bits: int) -> torch.Tensor:
    values = torch.from_numpy(rng.integers(-limit + 1, limit, size)).to(STATE_DTYPES[state_bits])
    values[: min(size, 4)] = torch.tensor([limit - 1, 1 - limit, 0, -1])[: min(size, 4)]
    return values


def random_integers(rng: np.random.Generator, sizes, state_bits: int, rule=oracle.SGD):
    """X and the states between -1 and 1. A state like a square is somewhat more than the first state's."""
    velocity, weight = units(state_bits)
    x = [integers(rng, weight, size, state_bits) for size in sizes]
    first = [integers(rng, velocity, size, state_bits) for size in sizes]
    return x, [first if power == 1 else [squares(rng, part, velocity) for part in first] for power in rule.powers]


def squares(rng: np.random.Generator, state: torch.Tensor, unit: int) -> torch.Tensor:
    """Of the integers of a state, in wide quanta, and a little more where it is more than a quantum."""
    values = 2.0**WIDE_FRACTION_BITS * (state.double() / unit) ** 2
    more = torch.from_numpy(rng.integers(0, 2 ** (WIDE_FRACTION_BITS - 12), len(state)))
    return values.to(torch.int64) + more * (state.abs() > 1)


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


def flagged_problem(state_bits: int, momentum: float, steps: int = 6, rule=oracle.SGD):
    """A bucket under way, and one more ordinary step to be spoilt by the test."""
    rng = np.random.default_rng(5)
    bucket = Bucket(*random_integers(rng, FLAG_SIZES, state_bits, rule), FLAG_DTYPES, state_bits, rule=rule)
    numbers = [numbers_of(rule, 0.5, 0.02, 0.01 * (i + 1), i) for i in range(3)]
    for _ in range(steps):
        bucket.step(Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), numbers, 0.1))
        assert bucket.flags == [0, 0, 0]
    return bucket, Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), numbers, momentum), rng


def one_weight_of_20(state_bits: int, x: int, *states: int, rule=oracle.SGD) -> Bucket:
    """Weight 11 has these integers, all others 0; the scales are 1."""
    slots = zeros(rule, state_bits, 20)
    for slot, z in zip(slots, (*states, x), strict=True):
        slot[11] = z
    scales = [[oracle.Scale() for _ in slots]]
    return Bucket([slots[-1]], [[slot] for slot in slots[:-1]], ["float64"], state_bits, scales=scales, rule=rule)


def one_gradient_of_20(gradient: float, numbers: tuple[float, ...], momentum=1.0) -> Step:
    gradients = torch.zeros(20, dtype=torch.float64)
    gradients[11] = gradient
    return Step([gradients], [numbers], momentum)


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


def sample(state_bits: int, rule=oracle.SGD) -> dict[str, tuple]:
    """Arguments of the ops, in order and without the optional ones. The middle tensor takes no part."""
    bucket, step, _ = flagged_problem(state_bits, 0.1, rule=rule)
    gradients = list(step.gradients)
    step.gradients[1] = None
    step.rescale = [(0, 1)] * 3
    record = bucket.record(step)
    assert len(record.planes)
    record.numbers.nan_to_num_()
    given = record.numbers, record.shifts, [], record.planes
    state = bucket.x, bucket.states
    bucket.skipped.zero_()
    return {
        "step": (rule.name, bucket.weights, gradients, *state, *given, NONE_SKIPPED, True, bucket.outcome),
        "move_weights": (rule.name, bucket.weights, *state, *given, True, True, bucket.outcome),
        "undo_states": (rule.name, bucket.weights, gradients, *state, *given, bucket.skipped, True, bucket.outcome),
    }
