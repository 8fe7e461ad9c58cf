"""Buckets of integer state for the dispatcher ops, their steps and the plain-integer oracle beside them. Used by tests/core,
tests/cuda and tests/gpu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch

import reversible_hypergrad._C  # noqa: F401  (registers the ops; the package's own __init__ their fakes)
from reversible_hypergrad import _core

OPS = torch.ops.reversible_hypergrad
INSTRUCTION_SETS = OPS.instruction_sets().split()
NONE_SKIPPED = torch.empty(0, dtype=torch.uint8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "float16": torch.float16}
STATE_DTYPES = {64: torch.int64, 32: torch.int32}
BITS_OF = {8: torch.int64, 4: torch.int32, 2: torch.int16}
WIDTHS = pytest.mark.parametrize("state_bits", [64, 32], ids=lambda bits: f"state{bits}")
EACH_INSTRUCTION_SET = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)

GUARD = 64  # elements around every tensor that no op may write


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(BITS_OF[a.element_size()]), b.view(BITS_OF[b.element_size()]))


@dataclass
class Step:
    """What one step needs to be done and undone; a gradient of None makes its tensor inactive."""

    gradients: list[torch.Tensor | None]
    coefficients: list[tuple[float, float, float]]  # (a, b, lr) per tensor
    n: int
    d: int
    rates: list[torch.Tensor | None] | None = None  # lr per weight, where given in place of the coefficient


ASKEW = frozenset({"x", "v", "s", "weights", "planes"})


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
    ):
        self.state_bits, self.dtypes = state_bits, dtypes
        self.ops, self.device, self.askew = ops, device, askew
        self._guards: list[tuple[torch.Tensor, int, int]] = []
        self.sizes = [len(part) for part in x]
        spaces = [_core.state_size(size) for size in self.sizes]
        self.offsets = [sum(spaces[:i]) for i in range(len(spaces))]
        self.x = self._guarded("x", sum(spaces), STATE_DTYPES[state_bits])
        self.v = self._guarded("v", sum(spaces), STATE_DTYPES[state_bits])
        self.s = self._guarded("s", sum(map(_core.lane_count, self.sizes)), STATE_DTYPES[state_bits])
        self.weights = [self._guarded("weights", size, DTYPES[d]) for size, d in zip(self.sizes, dtypes, strict=True)]
        self.bound = 1
        self.outcome = torch.full([1 + len(x)], -1, dtype=torch.int64, device=device)
        self.skipped = torch.zeros(sum(map(_core.block_count, self.sizes)), dtype=torch.uint8, device=device)
        for parts, target in ((x, self.x), (v, self.v)):
            for part, mine in zip(parts, self.split(target), strict=True):
                mine.copy_(part)
        self.s.zero_()
        for visible, part in zip(self.weights, self.split(self.x), strict=True):
            scaled = part.double() * 2.0 ** -_core.format_of(state_bits)["weight_fraction_bits"]
            visible.copy_(scaled if visible.dtype == torch.float64 else scaled.float().to(visible.dtype))

    def _guarded(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        # Planes are bytes that hold 16-bit words, which a GPU reads at even addresses only.
        start = GUARD + (dtype.itemsize == 1) + 1 if name in self.askew else GUARD
        whole = torch.full([size + 2 * GUARD + 2], 77, dtype=dtype, device=self.device)
        self._guards.append((whole, start, size))
        return whole[start : start + size]

    def split(self, state: torch.Tensor) -> list[torch.Tensor]:
        return [state[start : start + size] for start, size in zip(self.offsets, self.sizes, strict=True)]

    def padding(self, state: torch.Tensor) -> torch.Tensor:
        keep = torch.ones(len(state), dtype=torch.bool)
        for start, size in zip(self.offsets, self.sizes, strict=True):
            keep[start : start + size] = False
        return state[keep]

    def assert_guards(self) -> None:
        for whole, start, size in self._guards:
            assert bool((whole[:start] == 77).all())
            assert bool((whole[start + size :] == 77).all())

    def tensors(self) -> list[torch.Tensor]:
        return [self.x, self.v, self.s, *self.weights]

    def snapshot(self) -> list[torch.Tensor]:
        return [t.clone() for t in self.tensors()]

    def assert_equals(self, snapshot: list[torch.Tensor]) -> None:
        names = ["X", "V", "s", *(f"weights[{i}]" for i in range(len(self.weights)))]
        for name, mine, expected in zip(names, self.tensors(), snapshot, strict=True):
            assert same_bits(mine, expected), f"{name} differs"

    @property
    def hash(self) -> int:
        return int(self.outcome[0])

    @property
    def flags(self) -> list[int]:
        return self.outcome[1:].tolist()

    def new_planes(self, spill_bits: list[int]) -> list[torch.Tensor]:
        planes = [self._guarded("planes", len(self.s) * bits // 8, torch.uint8) for bits in spill_bits if bits]
        return planes

    def _shared(self, step: Step):
        gradients = [torch.empty(0) if g is None else g.to(self.device) for g in step.gradients]
        active = [g is not None for g in step.gradients]
        same = len(set(step.coefficients)) == 1  # then three numbers are enough
        flat = [c for row in step.coefficients[: 1 if same else None] for c in row]
        return gradients, active, flat

    def _rates(self, step: Step) -> list[torch.Tensor] | None:
        real = torch.float64 if self.state_bits == 64 else torch.float32
        none = torch.empty(0, dtype=real)
        return None if step.rates is None else [none if r is None else r.to(self.device) for r in step.rates]

    def step(self, step: Step, skipped: torch.Tensor = NONE_SKIPPED, planes=None, spill_bits=None):
        """One step. Returns (spill_bits, planes); with both given, redoes a step instead of planning one."""
        gradients, active, flat = self._shared(step)
        if planes is None:
            self.bound, spill_bits = _core.plan_pushes(self.bound, step.n, step.d, oracle.ROWS, self.state_bits)
            planes = self.new_planes(spill_bits)
        state = self.x, self.v, self.s, planes, spill_bits, flat, step.n, step.d
        self.ops.sgd_step(self.weights, gradients, active, *state, skipped.to(self.device), True, self.outcome, self._rates(step))
        return spill_bits, planes

    def move(self, step: Step, back: bool) -> None:
        _, active, flat = self._shared(step)
        state = self.x, self.v, self.s
        self.ops.sgd_move_weights(self.weights, active, *state, flat, back, True, self.outcome, self._rates(step))

    def undo_velocity(self, step: Step, spill_bits, planes) -> None:
        gradients, active, flat = self._shared(step)
        state = self.x, self.v, self.s, planes, spill_bits, flat, step.n, step.d
        self.ops.sgd_undo_velocity(self.weights, gradients, active, *state, self.skipped, True, self.outcome)

    def undo(self, step: Step, spill_bits, planes) -> None:
        self.move(step, back=True)
        self.undo_velocity(step, spill_bits, planes)


# Problems ------------------------------------------------------------------------------------------------------------


def scales(state_bits: int) -> tuple[float, float]:
    """Velocity quanta per unit, and weight quanta per velocity quantum."""
    fmt = oracle.FORMATS[state_bits]
    return 2.0**fmt.velocity_bits, 2.0 ** (fmt.weight_bits - fmt.velocity_bits)


def coefficients(state_bits: int, rate: float, decay: float, lr: float) -> tuple[float, float, float]:
    velocity, step = scales(state_bits)
    return -rate * velocity, -rate * decay * velocity / 2.0 ** oracle.FORMATS[state_bits].weight_bits, -lr * step


def integers(rng: np.random.Generator, limit: int, size: int, state_bits: int) -> torch.Tensor:
    values = torch.from_numpy(rng.integers(-limit + 1, limit, size)).to(STATE_DTYPES[state_bits])
    values[: min(size, 4)] = torch.tensor([limit - 1, 1 - limit, 0, -1])[: min(size, 4)]
    return values


def normal_gradients(rng, sizes, dtypes, active, scale=1.0) -> list[torch.Tensor | None]:
    """Normal numbers, a few of them tiny (subnormal in some formats) or of one to three magnitudes more."""
    out = []
    for size, dtype, on in zip(sizes, dtypes, active, strict=True):
        g = rng.standard_normal(size)
        g *= 10.0 ** rng.choice([0, -3, -6, -40, -310, 0.5], size, p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
        out.append(torch.from_numpy(g * scale).to(DTYPES[dtype]) if on else None)
    return out


def slow_momentum(n: int, d: int, steps: int) -> list[tuple[int, int]]:
    """n/d, with a step of 1/10 now and then that fills the buffer, so that slow momenta spill, too."""
    return [(1, 10) if t % 8 < 2 else (n, d) for t in range(steps)]


def momentum_schedule(name: str, state_bits: int, steps: int) -> list[tuple[int, int]]:
    most = oracle.FORMATS[state_bits].max_denominator
    if name == "changing":
        values = (0.9, 0.1, 0.99, 0.5, 1.0, 0.8731)
        return [_core.approximate_momentum(values[t % len(values)], state_bits) for t in range(steps)]
    if name == "1/max":
        return [(1, most)] * steps
    if name == "max-1/max":
        return slow_momentum(most - 1, most, steps)
    n, d = _core.approximate_momentum(float(name), state_bits)
    return slow_momentum(n, d, steps)


def oracle_twin(bucket: Bucket) -> oracle.Bucket:
    def parts(state):
        return [part.tolist() for part in bucket.split(state)]

    return oracle.Bucket(parts(bucket.x), parts(bucket.v), bucket.state_bits)


def oracle_step(twin: oracle.Bucket, step: Step):
    gradients = [None if g is None else g.double().tolist() for g in step.gradients]
    return twin.step(gradients, step.coefficients, step.n, step.d)


def assert_is_oracle(bucket: Bucket, twin: oracle.Bucket) -> None:
    assert [part.tolist() for part in bucket.split(bucket.v)] == twin.v, "V differs"
    assert [part.tolist() for part in bucket.split(bucket.x)] == twin.x, "X differs"
    assert bucket.s.tolist() == twin.s, "s differs"
    for i, (visible, x, dtype) in enumerate(zip(bucket.weights, twin.x, bucket.dtypes, strict=True)):
        size = visible.element_size()
        patterns = [p % 2 ** (8 * size) for p in visible.view(BITS_OF[size]).tolist()]
        expected = [oracle.visible_bits(one, dtype, bucket.state_bits) for one in x]
        assert patterns == expected, f"weights[{i}] ({dtype}) differ"


def check_against_oracle(x, v, dtypes, state_bits, steps: list[Step], use_instruction_set) -> list[int]:
    """Every instruction set follows the oracle step by step, then goes back to the start. Returns the spills."""
    buckets = {name: Bucket(x, v, dtypes, state_bits) for name in INSTRUCTION_SETS}
    first = buckets[INSTRUCTION_SETS[0]]
    twin = oracle_twin(first)
    assert_is_oracle(first, twin)
    padding = first.padding(first.x), first.padding(first.v)
    history, spills = [first.snapshot()], []
    tapes: dict[str, list] = {name: [] for name in buckets}
    hashes = []
    for step in steps:
        spill_bits, planes = oracle_step(twin, step)
        spills += [bits for bits in spill_bits if bits]
        for name, bucket in buckets.items():
            use_instruction_set(name)
            tape = bucket.step(step)
            tapes[name].append(tape)
            assert tape[0] == spill_bits
            assert [bytes(plane.tolist()) for plane in tape[1]] == planes, f"{name}: planes differ"
            assert bucket.flags == [0] * len(dtypes)
            assert bucket.hash == first.hash
            if name == INSTRUCTION_SETS[0]:
                assert_is_oracle(bucket, twin)
                history.append(bucket.snapshot())
            else:
                bucket.assert_equals(history[-1])
        hashes.append(first.hash)
    for name, bucket in buckets.items():
        use_instruction_set(name)
        for t in reversed(range(len(steps))):
            bucket.move(steps[t], back=True)
            assert bucket.flags == [0] * len(dtypes)
            moved = bucket.hash
            assert torch.equal(bucket.x, history[t][0])
            for mine, expected in zip(bucket.weights, history[t][3:], strict=True):
                assert same_bits(mine, expected)
            bucket.undo_velocity(steps[t], *tapes[name][t])
            assert bucket.flags == [0] * len(dtypes)
            bucket.assert_equals(history[t])
            if t:  # what an undo returns to has the hash that the step there had
                assert (moved + bucket.hash - hashes[t - 1]) % 2**64 == 0
        assert not bucket.s.any()
        assert not bucket.skipped.any()
        assert torch.equal(bucket.padding(bucket.x), padding[0])
        assert torch.equal(bucket.padding(bucket.v), padding[1])
        bucket.assert_guards()
    return spills


# Flags ----------------------------------------------------------------------------------------------------------------

FLAG_SIZES = [40, 700, 1030]
FLAG_DTYPES = ["float64", "float32", "bfloat16"]


def flagged_problem(state_bits: int, n: int, d: int, steps: int = 6):
    """A bucket with a buffer that spilled already, and one more ordinary step to be spoilt by the test."""
    rng = np.random.default_rng(5)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in FLAG_SIZES]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in FLAG_SIZES]
    bucket = Bucket(x, v, FLAG_DTYPES, state_bits)
    c = [coefficients(state_bits, 0.1, 0.02, 0.01 * (i + 1)) for i in range(3)]
    for _ in range(steps):
        bucket.step(Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), c, 1, 10))
        assert bucket.flags == [0, 0, 0]
    return bucket, Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), c, n, d), rng


def assert_flags(bucket: Bucket, expected: list[int]) -> None:
    """Exactly these flags; but what a bad gradient makes of V and X may overflow or not."""
    bad = oracle.BAD_GRADIENT
    assert [
        bad if flags & bad and wanted == bad else flags for flags, wanted in zip(bucket.flags, expected, strict=True)
    ] == expected


def assert_flagged_step_is_undone(bucket: Bucket, step: Step, expected: list[int]) -> None:
    start = bucket.snapshot()
    tape = bucket.step(step)
    assert_flags(bucket, expected)
    bucket.undo(step, *tape)
    bucket.assert_equals(start)
    bucket.assert_guards()


# Dispatcher -----------------------------------------------------------------------------------------------------------


def sample(state_bits: int):
    bucket, step, _ = flagged_problem(state_bits, 1, 10)
    bound, spill_bits = _core.plan_pushes(bound := bucket.bound, 1, 10, 8, state_bits)
    planes = bucket.new_planes(spill_bits)
    bucket.bound = bound
    active = [True, False, True]
    flat = [c for row in step.coefficients for c in row]
    state = bucket.x, bucket.v, bucket.s
    tail = planes, spill_bits, flat, 1, 10
    return {
        "sgd_step": (bucket.weights, step.gradients, active, *state, *tail, NONE_SKIPPED, True, bucket.outcome),
        "sgd_move_weights": (bucket.weights, active, *state, flat, True, True, bucket.outcome),
        "sgd_undo_velocity": (bucket.weights, step.gradients, active, *state, *tail, bucket.skipped, True, bucket.outcome),
    }
