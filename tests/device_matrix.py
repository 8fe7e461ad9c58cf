"""What the kernels of another device must do as the CPU's do: one table of cases, used by tests/cuda and tests/gpu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
import torch
from core_problems import DTYPES, Bucket, Step, coefficients, integers, momentum_schedule, normal_gradients, scales


@dataclass(frozen=True)
class Case:
    """Tensors of these sizes and dtypes; `rates`: positions of those with a learning rate per weight."""

    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    momentum: str = "changing"
    rates: tuple[int, ...] = ()
    decay: float = 0.02
    inactive: bool = False  # every third step leaves one tensor out


CASES = {
    **{f"one of {size}": Case((size,), ("float32",)) for size in (1, 7, 8, 511, 512, 513)},
    **{f"{dtype} weights": Case((520, 130), (dtype, dtype), rates=(0,)) for dtype in DTYPES},
    "dtypes side by side": Case((600, 0, 33, 1500, 77), ("float16", "float32", "float64", "float32", "bfloat16")),
    "nothing at all": Case((0, 0), ("float32", "float64")),
    "without weight decay": Case((1030, 65), ("float32", "float32"), decay=0.0, rates=(1,)),
    "some without gradients": Case((1030, 65, 512), ("float32", "bfloat16", "float32"), inactive=True, rates=(2,)),
    "fast decay": Case((700, 40), ("float32", "float32"), momentum="1/max"),
    "slow decay": Case((700, 40), ("float32", "float64"), momentum="max-1/max"),
    "many tensors": Case(tuple(1 + i % 11 for i in range(400)), ("float32",) * 400),
}


def state_of(case: Case, state_bits: int, rng: np.random.Generator):
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, size, state_bits) for size in case.sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in case.sizes]
    return x, v


def steps_of(case: Case, state_bits: int, count: int, rng: np.random.Generator) -> list[Step]:
    real = torch.float64 if state_bits == 64 else torch.float32
    dtypes = list(case.dtypes)
    steps = []
    for t, (n, d) in enumerate(momentum_schedule(case.momentum, state_bits, count)):
        cs = [coefficients(state_bits, 0.1, case.decay, 0.01 * (1 + i % 3)) for i in range(len(dtypes))]
        active = [not (case.inactive and t % 3 == i % 3) for i in range(len(dtypes))]
        rates = None
        if case.rates:
            rate = -0.02 * scales(state_bits)[1]
            rates = [
                torch.from_numpy(rng.random(size) * rate).to(real) if i in case.rates else None
                for i, size in enumerate(case.sizes)
            ]
        steps.append(Step(normal_gradients(rng, case.sizes, dtypes, active), cs, n, d, rates))
    return steps


def assert_same(mine: Bucket, expected: Bucket, planes=(), expected_planes=()) -> None:
    """Every bit of state, weights, outcome, skips and planes."""
    mine.assert_equals([t.to(mine.device) for t in expected.tensors()])
    assert mine.flags == expected.flags
    assert mine.hash == expected.hash
    assert torch.equal(mine.skipped.cpu(), expected.skipped.cpu())
    for plane, other in zip(planes, expected_planes, strict=True):
        assert torch.equal(plane.cpu(), other.cpu()), "planes differ"


def walk(expected: Bucket, others: list[Bucket], steps: list[Step]) -> list[int]:
    """All buckets go through the steps, back, and every phase is compared with the first one's. Returns the spills."""
    start, tapes, spills = expected.snapshot(), [], []
    for step in steps:
        tape = expected.step(step)
        mine = [bucket.step(step) for bucket in others]
        for bucket, (spill_bits, planes) in zip(others, mine, strict=True):
            assert spill_bits == tape[0]
            assert_same(bucket, expected, planes, tape[1])
        tapes.append((tape, mine))
        spills += [bits for bits in tape[0] if bits]
    for step, (tape, mine) in zip(reversed(steps), reversed(tapes), strict=True):
        for back in (True, False, True):
            for bucket in (expected, *others):
                bucket.move(step, back)
                assert_same(bucket, expected)
        expected.undo_velocity(step, *tape)
        for bucket, own in zip(others, mine, strict=True):
            bucket.undo_velocity(step, *own)
            assert_same(bucket, expected)
    assert not any(expected.flags)
    for bucket in (expected, *others):
        bucket.assert_equals([t.to(bucket.device) for t in start])
        bucket.assert_guards()
    return spills
