"""The dispatcher ops: bit for bit the plain-integer oracle, the same with every instruction set and thread count, and
undone exactly, whatever the gradients were.
"""

from __future__ import annotations

import copy
import math
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


class Bucket:
    """The integer state of a bucket, each tensor inside a guarded and purposely misaligned allocation."""

    def __init__(self, x: list[torch.Tensor], v: list[torch.Tensor], dtypes: list[str], state_bits: int):
        self.state_bits, self.dtypes = state_bits, dtypes
        self._guards: list[tuple[torch.Tensor, int, torch.Tensor]] = []
        self.sizes = [len(part) for part in x]
        spaces = [_core.state_size(size) for size in self.sizes]
        self.offsets = [sum(spaces[:i]) for i in range(len(spaces))]
        self.x = self._guarded(sum(spaces), STATE_DTYPES[state_bits])
        self.v = self._guarded(sum(spaces), STATE_DTYPES[state_bits])
        self.s = self._guarded(sum(map(_core.lane_count, self.sizes)), STATE_DTYPES[state_bits])
        self.weights = [self._guarded(size, DTYPES[d]) for size, d in zip(self.sizes, dtypes, strict=True)]
        self.bound = 1
        self.outcome = torch.full([1 + len(x)], -1, dtype=torch.int64)
        self.skipped = torch.zeros(sum(map(_core.block_count, self.sizes)), dtype=torch.uint8)
        for parts, target in ((x, self.x), (v, self.v)):
            for part, mine in zip(parts, self.split(target), strict=True):
                mine.copy_(part)
        self.s.zero_()
        for visible, part in zip(self.weights, self.split(self.x), strict=True):
            scaled = part.double() * 2.0 ** -_core.format_of(state_bits)["weight_fraction_bits"]
            visible.copy_(scaled if visible.dtype == torch.float64 else scaled.float().to(visible.dtype))

    def _guarded(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        whole = torch.full([size + 2 * GUARD + 1], 77, dtype=dtype)
        self._guards.append((whole, size, whole.clone()))
        return whole[GUARD + 1 : GUARD + 1 + size]

    def split(self, state: torch.Tensor) -> list[torch.Tensor]:
        return [state[start : start + size] for start, size in zip(self.offsets, self.sizes, strict=True)]

    def padding(self, state: torch.Tensor) -> torch.Tensor:
        keep = torch.ones(len(state), dtype=torch.bool)
        for start, size in zip(self.offsets, self.sizes, strict=True):
            keep[start : start + size] = False
        return state[keep]

    def assert_guards(self) -> None:
        for whole, size, before in self._guards:
            assert torch.equal(whole[: GUARD + 1], before[: GUARD + 1])
            assert torch.equal(whole[GUARD + 1 + size :], before[GUARD + 1 + size :])

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
        planes = [self._guarded(len(self.s) * bits // 8, torch.uint8) for bits in spill_bits if bits]
        return planes

    def _shared(self, step: Step):
        gradients = [torch.empty(0) if g is None else g for g in step.gradients]
        active = [g is not None for g in step.gradients]
        same = len(set(step.coefficients)) == 1  # then three numbers are enough
        flat = [c for row in step.coefficients[: 1 if same else None] for c in row]
        return gradients, active, flat

    def step(self, step: Step, skipped: torch.Tensor = NONE_SKIPPED, planes=None, spill_bits=None):
        """One step. Returns (spill_bits, planes); with both given, redoes a step instead of planning one."""
        gradients, active, flat = self._shared(step)
        if planes is None:
            self.bound, spill_bits = _core.plan_pushes(self.bound, step.n, step.d, oracle.ROWS, self.state_bits)
            planes = self.new_planes(spill_bits)
        state = self.x, self.v, self.s, planes, spill_bits, flat, step.n, step.d
        OPS.sgd_step(self.weights, gradients, active, *state, skipped, True, self.outcome)
        return spill_bits, planes

    def move(self, step: Step, back: bool) -> None:
        _, active, flat = self._shared(step)
        OPS.sgd_move_weights(self.weights, active, self.x, self.v, self.s, flat, back, True, self.outcome)

    def undo_velocity(self, step: Step, spill_bits, planes) -> None:
        gradients, active, flat = self._shared(step)
        state = self.x, self.v, self.s, planes, spill_bits, flat, step.n, step.d
        OPS.sgd_undo_velocity(self.weights, gradients, active, *state, self.skipped, True, self.outcome)

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


MOMENTA = ["0.1", "0.5", "0.9", "0.99", "0.999", "0.8731", "1", "changing", "1/max", "max-1/max"]
SIZES = [1, 2, 7, 8, 0, 129, 512, 513]


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


# Against the oracle --------------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["plain", "weight decay"])
def test_small_bucket_is_the_oracle_and_undone(state_bits, momentum, decay, use_instruction_set):
    """Eight sizes at once, every dtype on every size over the cases, each tensor inactive now and then."""
    case = MOMENTA.index(momentum)
    rng = np.random.default_rng([state_bits, case, int(decay > 0)])
    names = list(DTYPES)
    # Consecutive cases turn the dtypes by one: (size, dtype) meet in each width and with and without decay.
    dtypes = [names[(i + case + (decay > 0)) % 4] for i in range(len(SIZES))]
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in SIZES]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in SIZES]
    fixed = [coefficients(state_bits, *rng.uniform([0.02, 0, 0.001], [0.1, decay, 0.05])) for _ in SIZES]
    steps = []
    for t, (n, d) in enumerate(momentum_schedule(momentum, state_bits, 24)):
        active = rng.random(len(SIZES)) < 0.8
        cs = [fixed[0]] * len(SIZES) if t % 5 == 0 else fixed
        steps.append(Step(normal_gradients(rng, SIZES, dtypes, active), cs, n, d))
    spills = check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)
    assert len(spills) > 2


@WIDTHS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 129, 512, 513])
def test_single_tensor_is_the_oracle_and_undone(state_bits, dtype, size, use_instruction_set):
    rng = np.random.default_rng([state_bits, size])
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits)]
    c = [coefficients(state_bits, 0.1, 0.01, 0.05)]
    steps = [
        Step(normal_gradients(rng, [size], [dtype], [True]), c, n, d)
        for n, d in momentum_schedule("changing", state_bits, 50 if size < 100 else 10)
    ]
    spills = check_against_oracle(x, [torch.zeros_like(x[0])], [dtype], state_bits, steps, use_instruction_set)
    assert spills


@WIDTHS
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensor_is_the_oracle_and_undone(state_bits, dtype, use_instruction_set):
    sizes = [3, 4096 + 33, 16]
    rng = np.random.default_rng(state_bits)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in sizes]
    dtypes = [dtype] * 3
    c = [coefficients(state_bits, 0.1, 0.01, 0.05)] * 3
    steps = [
        Step(normal_gradients(rng, sizes, dtypes, [True] * 3), c, n, d) for n, d in momentum_schedule("0.8731", state_bits, 4)
    ]
    spills = check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)
    assert spills


@WIDTHS
def test_ties_round_to_even(state_bits, use_instruction_set):
    """Gradients, decay and rate that land on halves exactly, positive and negative."""
    sizes, dtypes = [600, 600, 600], ["float32", "float64", "bfloat16"]
    rng = np.random.default_rng(1)
    x = [torch.from_numpy(rng.integers(-99, 100, size)).to(STATE_DTYPES[state_bits]) for size in sizes]
    v = [torch.from_numpy(rng.integers(-99, 100, size)).to(STATE_DTYPES[state_bits]) for size in sizes]
    steps = []
    for t in range(6):
        gradients = [torch.from_numpy(rng.integers(-64, 65, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        steps.append(Step(gradients, [(0.5, 0.5 * (t % 2), 0.5), (-1.5, 0.0, -0.5), (0.5, 0.0, 1.5)], 1, 2))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_whole_range_of_the_states_rounds_as_specified(state_bits, use_instruction_set):
    """X and V of every magnitude up to the limits: conversions to the real type round, float16 weights overflow."""
    sizes, dtypes = [513, 200, 200, 200], list(DTYPES)
    rng = np.random.default_rng(2)
    fmt = oracle.FORMATS[state_bits]

    def spread(limit, size):
        magnitude = 2.0 ** rng.uniform(0, math.log2(limit), size)
        return torch.from_numpy(np.trunc(magnitude) * rng.choice([-1, 1], size)).to(STATE_DTYPES[state_bits])

    def low_bits(limit, values):
        noise = torch.from_numpy(rng.integers(0, 1024, len(values))).to(values.dtype)
        return torch.where(values.abs() < limit // 2, values + noise, values)

    x = [low_bits(fmt.weight_limit, spread(fmt.weight_limit // 2, size)) for size in sizes]
    v = [low_bits(fmt.velocity_limit, spread(fmt.velocity_limit - 1, size)) for size in sizes]
    lr = scales(state_bits)[1] * (0.025 if state_bits == 64 else 0.01)
    steps = []
    for n, d in [(9, 10), (1, 2), (99, 100)]:
        top = fmt.velocity_limit * (1 - n / d) / 2
        # Gradients of every magnitude that V has room for after its contraction.
        gradients = [
            torch.from_numpy(2.0 ** rng.uniform(-20, 0, size) * rng.choice([-1, 1], size)).to(DTYPES[dtype])
            for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        steps.append(Step(gradients, [(top, 0.0, lr), (top, 0.0, -lr), (top, 2.0**-20, lr), (top, -(2.0**-20), lr)], n, d))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_every_operation_rounds_by_itself(state_bits, use_instruction_set):
    """Terms so large that their last bits count: a fused multiply-add or a wider intermediate would show."""
    sizes, dtypes = [1500, 1500], ["float64", "float32"]
    rng = np.random.default_rng(4)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, fmt.weight_limit // 4, size, state_bits) for size in sizes]
    v = [torch.zeros_like(part) for part in x]
    a = fmt.velocity_limit / 7.3
    b = fmt.velocity_limit / fmt.weight_limit / 1.7
    lr = fmt.weight_limit / fmt.velocity_limit / 9.1
    steps = []
    for c in [(a, b, lr), (a, -b, -lr)]:
        gradients = [torch.from_numpy(rng.uniform(-1, 1, size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
        steps.append(Step(gradients, [c, (c[0], -c[1], c[2])], 1, 2))
    check_against_oracle(x, v, dtypes, state_bits, steps, use_instruction_set)


@WIDTHS
def test_oracle_undoes_itself(state_bits):
    rng = np.random.default_rng(3)
    sizes, dtypes = [5, 0, 70], ["float32", "float64", "float16"]
    v = [integers(rng, 2**20, size, state_bits) for size in sizes]
    twin = oracle_twin(Bucket(v, v, dtypes, state_bits))
    start = copy.deepcopy((twin.x, twin.v))
    c = [coefficients(state_bits, 0.1, 0.01, 0.05)] * 3
    tape = []
    for n, d in momentum_schedule("changing", state_bits, 20):
        step = Step(normal_gradients(rng, sizes, dtypes, rng.random(3) < 0.8), c, n, d)
        tape.append((step, oracle_step(twin, step)))
    assert (twin.x, twin.v) != start
    for step, (spill_bits, planes) in reversed(tape):
        gradients = [None if g is None else g.double().tolist() for g in step.gradients]
        twin.undo(gradients, c, step.n, step.d, spill_bits, planes)
    assert (twin.x, twin.v) == start
    assert not any(twin.s)


# Instruction sets and threads ----------------------------------------------------------------------------------------


def random_run(state_bits, use_instruction_set, name, steps=200):
    """A few hundred random steps on 100 k weights and back. Returns all hashes, the final state and the last planes."""
    rng = np.random.default_rng(7)
    sizes, dtypes = [40_000, 30_000, 20_011, 10_000], list(DTYPES)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in sizes]
    pool = [normal_gradients(rng, sizes, dtypes, [True] * 4) for _ in range(4)]
    c = [coefficients(state_bits, 0.1, 0.02, 0.01 * (i + 1)) for i in range(4)]
    bucket = Bucket(x, v, dtypes, state_bits)
    start = bucket.snapshot()
    use_instruction_set(name)
    hashes, tape = [], []
    for t, (n, d) in enumerate(momentum_schedule("changing", state_bits, steps)):
        gradients = list(pool[t % 4])
        if t % 3 == 0:
            gradients[t % 4] = None
        step = Step(gradients, c, n, d)
        tape.append((step, *bucket.step(step)))
        assert bucket.flags == [0] * 4
        hashes.append(bucket.hash)
    end = [*bucket.snapshot(), *(plane.clone() for _, _, planes in tape[-10:] for plane in planes)]
    for step, spill_bits, planes in reversed(tape):
        bucket.undo(step, spill_bits, planes)
        assert bucket.flags == [0] * 4
        hashes.append(bucket.hash)
    bucket.assert_equals(start)
    assert not bucket.s.any()
    bucket.assert_guards()
    return hashes, end


@WIDTHS
def test_instruction_sets_and_threads_agree_on_a_long_run(state_bits, use_instruction_set, set_num_threads):
    results = {}
    for threads in (1, 2):
        set_num_threads(threads)
        for name in INSTRUCTION_SETS if threads == 1 else INSTRUCTION_SETS[:1]:
            results[name, threads] = random_run(state_bits, use_instruction_set, name)
    hashes, end = results.pop((INSTRUCTION_SETS[0], 1))
    assert len(set(hashes)) == len(hashes)
    for which, (other_hashes, other_end) in results.items():
        assert other_hashes == hashes, which
        for mine, other in zip(end, other_end, strict=True):
            if mine.dtype == torch.uint8:
                assert torch.equal(mine, other), which
            else:
                assert same_bits(mine, other), which


@WIDTHS
@EACH_INSTRUCTION_SET
def test_weights_streamed_past_the_cache_are_the_same(state_bits, instruction_set, use_instruction_set):
    """From 32 MiB of visible weights on, they are written differently; the values and the neighbours stay the same."""
    use_instruction_set(instruction_set)
    rng = np.random.default_rng(11)
    sizes, dtypes = [2**22 + 37, 999, 1003, 70_001], ["float64", "bfloat16", "float16", "float32"]
    fmt = oracle.FORMATS[state_bits]
    limit = 2**fmt.weight_bits
    x = [torch.from_numpy(rng.integers(-limit, limit, size)).to(STATE_DTYPES[state_bits]) for size in sizes]
    v = [one.flip(0) % 2**20 for one in x]
    gradients = [torch.from_numpy(rng.standard_normal(size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
    c = [coefficients(state_bits, 0.1, 0.02, 0.01)] * 4
    bucket = Bucket(x, v, dtypes, state_bits)
    small = Bucket(x[1:], v[1:], dtypes[1:], state_bits)
    start = bucket.snapshot()
    tape = bucket.step(Step(gradients, c, 9, 10))
    small.step(Step(gradients[1:], c[1:], 9, 10))
    for mine, other in zip(bucket.split(bucket.x)[1:], small.split(small.x), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(bucket.weights[1:], small.weights, strict=True):
        assert same_bits(mine, other)
    assert same_bits(bucket.weights[0], bucket.split(bucket.x)[0].double() * 2.0**-fmt.weight_bits)
    assert not torch.equal(bucket.x, start[0])
    bucket.undo(Step(gradients, c, 9, 10), *tape)
    bucket.assert_equals(start)
    bucket.assert_guards()


def test_unknown_instruction_set_is_refused_and_changes_nothing(use_instruction_set):
    with pytest.raises(RuntimeError, match="instruction set 'abacus'"):
        use_instruction_set("abacus")
    assert OPS.instruction_sets().split() == INSTRUCTION_SETS
    assert "portable" in INSTRUCTION_SETS


# Flags ---------------------------------------------------------------------------------------------------------------

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


BAD_GRADIENTS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e30, "-huge": -1e30, "max": 3.3e38}


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("places", [[(0, 0)], [(1, 513)], [(1, 699), (2, 7)], [(2, 1029)], [(0, i) for i in range(40)]])
@pytest.mark.parametrize(("n", "d"), [(9, 10), (1, 10)])
def test_bad_gradient_is_flagged_and_undone(state_bits, instruction_set, bad, places, n, d, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, n, d)
    for tensor, i in places:
        step.gradients[tensor][i] = BAD_GRADIENTS[bad]
    spoilt = {tensor for tensor, _ in places}
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_GRADIENT * (i in spoilt) for i in range(3)])


@WIDTHS
def test_bad_gradient_leaves_the_other_tensors_alone(state_bits):
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    other, same, _ = flagged_problem(state_bits, 9, 10)
    step.gradients[1][5] = math.nan
    bucket.step(step)
    other.step(same)
    for state, expected in ((bucket.x, other.x), (bucket.v, other.v)):
        for i in (0, 2):
            assert torch.equal(bucket.split(state)[i], other.split(expected)[i])


@WIDTHS
def test_gradient_of_float64_beyond_float32_is_bad_for_a_32_bit_state_only(state_bits):
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    step.gradients[0][3] = 1e300
    step.coefficients = [(c[0] * 1e-300 if i == 0 else c[0], 0.0, c[2]) for i, c in enumerate(step.coefficients)]
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_GRADIENT if state_bits == 32 else 0, 0, 0])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("tensor", range(3))
def test_velocity_overflow_is_flagged_and_undone(state_bits, instruction_set, sign, tensor, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 99, 100)
    limit = oracle.FORMATS[state_bits].velocity_limit
    bucket.split(bucket.v)[tensor][-1] = sign * (limit - 1)
    step.gradients[tensor][-1] = sign
    step.coefficients = [(limit / 2, 0.0, 0.0) if i == tensor else c for i, c in enumerate(step.coefficients)]
    step.gradients[tensor][:-1] = 0
    assert_flagged_step_is_undone(bucket, step, [oracle.VELOCITY_OVERFLOW * (i == tensor) for i in range(3)])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("beyond", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize("what", ["velocity", "weight"])
def test_overflow_begins_at_the_limit(state_bits, instruction_set, sign, beyond, what, use_instruction_set):
    """In range is [-limit, limit)."""
    use_instruction_set(instruction_set)
    fmt = oracle.FORMATS[state_bits]
    x, v = torch.zeros(20, dtype=STATE_DTYPES[state_bits]), torch.zeros(20, dtype=STATE_DTYPES[state_bits])
    gradient = torch.zeros(20)
    if what == "velocity":
        v[11] = fmt.velocity_limit - 2 if sign > 0 else -(fmt.velocity_limit - 1)
        c = (1.0, 0.0, 0.0)
    else:
        x[11] = fmt.weight_limit - 2 if sign > 0 else -(fmt.weight_limit - 1)
        c = (1.0, 0.0, -1.0)
    gradient[11] = sign * (1 + beyond)
    bucket = Bucket([x], [v], ["float32"], state_bits)
    flag = {"velocity": oracle.VELOCITY_OVERFLOW, "weight": oracle.WEIGHT_OVERFLOW}[what]
    assert_flagged_step_is_undone(bucket, Step([gradient], [c], 1, 1), [flag * beyond])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("how", ["sum", "product", "product beyond the integers", "infinite product"])
@pytest.mark.parametrize("tensor", range(3))
def test_weight_overflow_is_flagged_and_undone(state_bits, instruction_set, how, tensor, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    fmt = oracle.FORMATS[state_bits]
    lr = {"sum": 1.0, "product": 2.0**14, "product beyond the integers": 1e25, "infinite product": 3e38}[how]
    if how == "sum":
        bucket.split(bucket.x)[tensor][17] = fmt.weight_limit - 1
        bucket.split(bucket.v)[tensor][17] = -(fmt.velocity_limit // 2)
    else:
        bucket.split(bucket.v)[tensor][17] = fmt.velocity_limit // 2
    step.coefficients = [(c[0], 0.0, lr) if i == tensor else c for i, c in enumerate(step.coefficients)]
    for part, visible in zip(bucket.split(bucket.x), bucket.weights, strict=True):
        visible.copy_((part.double() * 2.0**-fmt.weight_bits).float())
    start = bucket.snapshot()
    tape = bucket.step(step)
    assert bucket.flags == [oracle.WEIGHT_OVERFLOW * (i == tensor) for i in range(3)]
    bucket.undo(step, *tape)
    for mine, expected in zip(bucket.tensors()[:3], start[:3], strict=True):
        assert same_bits(mine, expected)


# Foreign gradients ---------------------------------------------------------------------------------------------------


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("decay", [0.0, 0.02], ids=["plain", "weight decay"])
@pytest.mark.parametrize("scale", ["same", "x30", "large", "zero", "nan", "mixed"])
@pytest.mark.parametrize(("n", "d"), [(1, 10), (9, 10), (1, 2), (999, 1000)], ids=lambda value: str(value))
def test_undo_with_a_wrong_gradient_is_redone(state_bits, instruction_set, decay, scale, n, d, use_instruction_set):
    """move back, undo_velocity with a wrong gradient, step with the same one: where we were, with every plane."""
    use_instruction_set(instruction_set)
    bucket, step, rng = flagged_problem(state_bits, n, d)
    step.coefficients = [(a, b if decay else 0.0, lr) for a, b, lr in step.coefficients]
    before = bucket.snapshot()
    spill_bits, planes = bucket.step(step)
    assert bucket.flags == [0, 0, 0]
    done, written = bucket.snapshot(), [plane.clone() for plane in planes]

    wrong = Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), step.coefficients, n, d)
    most = oracle.FORMATS[state_bits].velocity_limit / abs(step.coefficients[0][0])
    for gradient in wrong.gradients:
        if scale == "x30":
            gradient *= 30
        elif scale == "large":
            gradient *= most / 10
        elif scale == "zero":
            gradient.zero_()
        elif scale == "nan":
            gradient[len(gradient) // 2] = math.nan
        elif scale == "mixed":
            where = torch.from_numpy(rng.random(len(gradient)) < 0.002)
            gradient[where] = torch.tensor([math.inf, -1e30, most * 0.9, math.nan] * 600)[: int(where.sum())].to(gradient)
    bucket.move(wrong, back=True)
    moved = bucket.snapshot()
    bucket.undo_velocity(wrong, spill_bits, planes)
    assert any(not torch.equal(a, b) for a, b in zip(bucket.snapshot()[:3], before[:3], strict=True))
    assert torch.equal(bucket.x, moved[0])  # an undone velocity moves no weight
    bucket.step(wrong, bucket.skipped, planes, spill_bits)
    bucket.assert_equals(done)
    for plane, expected in zip(planes, written, strict=True):
        assert torch.equal(plane, expected)
    # With the right gradients the way back is still there.
    bucket.undo(step, spill_bits, planes)
    assert bucket.flags == [0, 0, 0]
    assert not bucket.skipped.any()
    bucket.assert_equals(before)
    bucket.assert_guards()


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("place", [(0, 39), (1, 0), (1, 512), (1, 699), (2, 600), (2, 1029)], ids=str)
def test_foreign_gradient_marks_its_block_and_leaves_it_untouched(state_bits, instruction_set, place, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 1, 10)
    before = bucket.snapshot()
    spill_bits, planes = bucket.step(step)
    assert any(spill_bits)
    tensor, i = place
    wrong = copy.deepcopy(step)
    # V - q expands by d/n = 10, out of the range.
    limit = oracle.FORMATS[state_bits].velocity_limit
    wrong.gradients[tensor][i] = limit / 4 / abs(step.coefficients[tensor][0])
    bucket.move(wrong, back=True)
    moved = bucket.snapshot()
    bucket.undo_velocity(wrong, spill_bits, planes)
    assert bucket.flags == [oracle.FOREIGN_GRADIENT * (k == tensor) for k in range(3)]
    blocks = [_core.block_count(size) for size in FLAG_SIZES]
    marked = sum(blocks[:tensor]) + i // oracle.BLOCK
    assert bucket.skipped.bool().tolist() == [k == marked for k in range(sum(blocks))]
    # Inside the block all as it was; outside, all as the right gradients leave it.
    begin, end = i // oracle.BLOCK * oracle.BLOCK, min(FLAG_SIZES[tensor], (i // oracle.BLOCK + 1) * oracle.BLOCK)
    expected = before[1].clone()
    bucket.split(expected)[tensor][begin:end] = bucket.split(moved[1])[tensor][begin:end]
    assert torch.equal(bucket.v, expected)
    first = sum(_core.lane_count(size) for size in FLAG_SIZES[:tensor])
    lanes = slice(first + _core.lane_count(begin), first + _core.lane_count(end))
    expected = before[2].clone()
    expected[lanes] = moved[2][lanes]
    assert torch.equal(bucket.s, expected)


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize(("n", "d"), [(9, 10), (8010, 8192), (1, 2)], ids=str)
def test_wrong_gradient_at_the_end_of_the_range_is_redone(state_bits, instruction_set, sign, n, d, use_instruction_set):
    """A wrong gradient that would expand V to a little beyond its limit is foreign, or the redo must still be exact."""
    use_instruction_set(instruction_set)
    v = torch.full([1], sign * (oracle.FORMATS[state_bits].velocity_limit - 1), dtype=STATE_DTYPES[state_bits])
    c = [(1.0, 0.0, 0.0)]
    right = Step([torch.zeros(1, dtype=torch.float64)], c, n, d)
    for q in [1, 2, 3, 5, 10, 30, 100, 400, 1000, 10**4, 10**5, 10**6]:
        bucket = Bucket([torch.zeros_like(v)], [v], ["float64"], state_bits)
        spill_bits, planes = bucket.step(right)
        done = bucket.snapshot()
        wrong = Step([torch.tensor([-sign * q], dtype=torch.float64)], c, n, d)
        bucket.undo(wrong, spill_bits, planes)
        flags, undone = bucket.flags, int(bucket.split(bucket.v)[0][0])
        bucket.step(wrong, bucket.skipped, planes, spill_bits)
        redone = int(bucket.split(bucket.v)[0][0]), int(bucket.s[0])
        expected = int(bucket.split(done[1])[0][0]), int(done[2][0])
        assert redone == expected, f"q = {-sign * q}: undone to {undone} with flags {flags}"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_gradients_a_step_is_undone_and_redone(seed, use_instruction_set):
    """Random formats, sizes, momenta, magnitudes and garbage: all instruction sets agree, right gradients lead back,
    wrong ones lead back and forth.
    """
    for problem in range(8):
        rng = np.random.default_rng([seed, problem])
        state_bits = int(rng.choice([32, 64]))
        fmt = oracle.FORMATS[state_bits]
        count = int(rng.integers(1, 4))
        sizes = [int(size) for size in rng.choice([1, 5, 8, 9, 63, 130, 511, 512, 513, 777], count)]
        dtypes = [str(dtype) for dtype in rng.choice(list(DTYPES), count)]
        x = [integers(rng, rng.choice([fmt.weight_limit, 2**fmt.weight_bits]), size, state_bits) for size in sizes]
        v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in sizes]
        buckets = {name: Bucket(x, v, dtypes, state_bits) for name in INSTRUCTION_SETS}
        for _ in range(4):
            right, wrong = random_right_and_wrong(rng, sizes, dtypes, state_bits)
            traces = [there_and_back(bucket, right, wrong, name, use_instruction_set) for name, bucket in buckets.items()]
            for name, trace in zip(INSTRUCTION_SETS, traces, strict=True):
                for mine, first in zip(trace, traces[0], strict=True):
                    assert torch.equal(mine, first), name


def random_right_and_wrong(rng, sizes, dtypes, state_bits) -> tuple[Step, Step]:
    """A step with some garbage among its gradients; the same step with a few, or all, of its gradients changed."""
    fmt = oracle.FORMATS[state_bits]
    d = int(rng.choice([1, 2, 10, 100, 1000, fmt.max_denominator, rng.integers(1, fmt.max_denominator + 1)]))
    n = int(rng.choice([1, d, max(1, d - 1), rng.integers(1, d + 1)]))
    signs, exponents = rng.choice([-1, 1], (3, len(sizes))), rng.uniform([[-3], [-4], [-5]], [[1], [1], [2]], (3, len(sizes)))
    rate, decay, lr = signs * 10.0**exponents
    decay *= rng.random(len(sizes)) < 0.5
    cs = [coefficients(state_bits, *row) for row in zip(rate.tolist(), decay.tolist(), lr.tolist(), strict=True)]
    garbage = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e5, -1e4, 3.0, 65504]
    active = rng.random(len(sizes)) < 0.85

    def gradients(spoil):
        out = normal_gradients(rng, sizes, dtypes, active, 10.0 ** rng.choice([-2, 0, 0, 2, 4]))
        for gradient in out:
            if gradient is not None and rng.random() < spoil:
                where = torch.from_numpy(rng.random(len(gradient)) < rng.choice([0.01, 0.2]))
                gradient[where] = torch.from_numpy(rng.choice(garbage, int(where.sum()))).to(gradient)
        return out

    right = gradients(0.3)
    wrong = gradients(0.3) if rng.random() < 0.5 else copy.deepcopy(right)
    for gradient in wrong:
        if gradient is not None:
            gradient[int(rng.integers(len(gradient)))] = float(rng.choice([0, 1, 1e3, math.nan, 1e30]))
    return Step(right, cs, n, d), Step(wrong, cs, n, d)


def there_and_back(bucket: Bucket, right: Step, wrong: Step, name: str, use_instruction_set) -> list[torch.Tensor]:
    """step; undone with the wrong gradients, redone; undone with the right ones; left done if nothing was flagged."""
    use_instruction_set(name)
    trace = []

    def record():
        trace.extend(t.clone() for t in (bucket.x, bucket.v, bucket.s, bucket.outcome, bucket.skipped))
        return bucket.snapshot()

    bound, before = bucket.bound, bucket.snapshot()
    spill_bits, planes = bucket.step(right)
    flags, done, written = bucket.flags, record(), [plane.clone() for plane in planes]
    bucket.undo(wrong, spill_bits, planes)
    record()
    bucket.step(wrong, bucket.skipped, planes, spill_bits)
    record()
    bucket.assert_equals(done)
    for plane, expected in zip(planes, written, strict=True):
        assert torch.equal(plane, expected)
    bucket.undo(right, spill_bits, planes)
    record()
    bucket.assert_equals(before)
    if any(flags):
        bucket.bound = bound
    else:
        bucket.step(right, NONE_SKIPPED, planes, spill_bits)
        bucket.assert_equals(done)
    bucket.assert_guards()
    return [*trace, *written]


# Hash ----------------------------------------------------------------------------------------------------------------


def hash_of(bucket: Bucket) -> int:
    """The hash of X and V as they stand: a step that changes nothing."""
    gradients = [torch.zeros(size, dtype=w.dtype) for size, w in zip(bucket.sizes, bucket.weights, strict=True)]
    snapshot = bucket.snapshot()
    bucket.step(Step(gradients, [(1.0, 0.0, 0.0)] * len(gradients), 1, 1))
    for mine, expected in zip(bucket.tensors()[:3], snapshot, strict=False):
        assert torch.equal(mine, expected)
    return bucket.hash


@WIDTHS
@EACH_INSTRUCTION_SET
def test_hash_changes_with_every_bit_of_the_state(state_bits, instruction_set, use_instruction_set):
    use_instruction_set(instruction_set)
    rng = np.random.default_rng(13)
    fmt = oracle.FORMATS[state_bits]
    sizes, dtypes = [21, 520], ["float32", "float64"]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in sizes]
    bucket = Bucket(x, v, dtypes, state_bits)
    seen = {hash_of(bucket)}
    count = 1
    for state, top in ((bucket.x, fmt.weight_limit), (bucket.v, fmt.velocity_limit)):
        for part, i in ((0, 0), (0, 20), (1, 3), (1, 511), (1, 512), (1, 519)):
            values = bucket.split(state)[part]
            before = int(values[i])
            for bit in range(top.bit_length() - 1):
                values[i] = before ^ (1 << bit)
                seen.add(hash_of(bucket))
                count += 1
            values[i] = before
    assert len(seen) == count


@WIDTHS
@EACH_INSTRUCTION_SET
def test_hash_changes_when_values_trade_places(state_bits, instruction_set, use_instruction_set):
    use_instruction_set(instruction_set)
    rng = np.random.default_rng(17)
    sizes, dtypes = [21, 1100], ["float32", "float64"]
    x = [integers(rng, 2**20, size, state_bits) for size in sizes]
    v = [integers(rng, 2**20, size, state_bits) for size in sizes]
    bucket = Bucket(x, v, dtypes, state_bits)
    start = hash_of(bucket)
    places = [(0, 4), (0, 5), (0, 12), (0, 20), (1, 5), (1, 6), (1, 69), (1, 5 + 512), (1, 1030), (1, 1099)]
    for state in (bucket.x, bucket.v):
        parts = bucket.split(state)
        for a, i in places:
            for b, j in places:
                one, other = int(parts[a][i]), int(parts[b][j])
                if one == other:
                    continue
                parts[a][i], parts[b][j] = other, one
                assert hash_of(bucket) != start, ((a, i), (b, j))
                # Nor do opposite changes cancel.
                parts[a][i], parts[b][j] = one + 1, other - 1
                assert hash_of(bucket) != start, ((a, i), (b, j))
                parts[a][i], parts[b][j] = one, other
    for part, i in places:  # X and V of a weight
        one, other = int(bucket.split(bucket.x)[part][i]), int(bucket.split(bucket.v)[part][i])
        bucket.split(bucket.x)[part][i], bucket.split(bucket.v)[part][i] = other, one
        assert hash_of(bucket) != start
        bucket.split(bucket.x)[part][i], bucket.split(bucket.v)[part][i] = one, other
    assert hash_of(bucket) == start


@WIDTHS
def test_hash_is_of_what_the_phase_moved(state_bits):
    """Moving the weights hashes X, undoing the velocity V, a step both; the bucket's padding and s are in none."""
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    both = hash_of(bucket)
    still = Step(step.gradients, [(1.0, 0.0, 0.0)] * 3, 1, 1)
    bucket.move(still, back=False)
    x_only = bucket.hash
    bucket.move(still, back=True)
    assert bucket.hash == x_only
    for gradient in still.gradients:
        gradient.zero_()
    bucket.undo_velocity(still, [0] * 8, [])
    assert (x_only + bucket.hash - both) % 2**64 == 0
    bucket.s.zero_()
    bucket.x[40:48] = 5
    assert hash_of(bucket) == both


# Dispatcher ----------------------------------------------------------------------------------------------------------


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


@WIDTHS
@pytest.mark.parametrize("op", ["sgd_step", "sgd_move_weights", "sgd_undo_velocity"])
def test_opcheck(state_bits, op):
    torch.library.opcheck(getattr(OPS, op).default, sample(state_bits)[op])


WRONG_ARGUMENTS = {
    "active too short": ("active", lambda a: a[:-1], "active"),
    "coefficients of another count": ("coefficients", lambda c: c[:-1], "coefficients"),
    "gradient of another size": ("gradients", lambda g: [g[0][1:], *g[1:]], r"gradients\[0\]"),
    "gradient of another dtype": ("gradients", lambda g: [g[0].half(), *g[1:]], r"gradients\[0\]"),
    "state too short": ("state_weights", lambda x: x[1:], "state_weights"),
    "velocities of another dtype": ("velocities", lambda v: v.double(), "velocities"),
    "accumulators too short": ("accumulators", lambda s: s[1:], "accumulators"),
    "planes missing": ("planes", lambda p: p[:-1], "planes"),
    "plane too short": ("planes", lambda p: [p[0][1:], *p[1:]], "planes"),
    "spill_bits of another count": ("spill_bits", lambda b: b[:-1], "spill_bits"),
    "spill_bits of an odd width": ("spill_bits", lambda b: [4, *b[1:]], "spill_bits"),
    "momentum above 1": ("n", lambda n: 11, "n/d"),
    "momentum 0": ("n", lambda n: 0, "n/d"),
    "denominator beyond the format": ("d", lambda d: 2**16 + 1, "n/d"),
    "outcome too short": ("outcome", lambda o: o[1:], "outcome"),
    "skipped of another size": ("skipped", lambda s: torch.zeros(1, dtype=torch.uint8), "skipped"),
}


@WIDTHS
@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_argument_is_named_and_nothing_moves(state_bits, case):
    arguments = sample(state_bits)["sgd_step"]
    names = [argument.name for argument in OPS.sgd_step.default._schema.arguments]
    name, spoil, message = WRONG_ARGUMENTS[case]
    values = dict(zip(names, arguments, strict=False))  # without the optional ones
    before = [values[k].clone() for k in ("state_weights", "velocities", "accumulators")]
    with pytest.raises(RuntimeError, match=message):
        OPS.sgd_step(**{**values, name: spoil(values[name])})
    for k, expected in zip(("state_weights", "velocities", "accumulators"), before, strict=True):
        assert torch.equal(values[k], expected)
