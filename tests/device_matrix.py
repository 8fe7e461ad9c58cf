"""What the kernels of another device must do as the CPU's do: one table of cases, used by tests/cuda and tests/gpu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
import torch
from core_problems import (
    DTYPES,
    Bucket,
    Record,
    Step,
    momentum_schedule,
    normal_gradients,
    numbers_of,
    random_elements,
    random_integers,
)


@dataclass(frozen=True)
class Case:
    """Tensors of these sizes and dtypes; `elements`: positions of those with a learning rate and a decay per weight."""

    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    momentum: str = "changing"
    elements: tuple[int, ...] = ()
    decay: float = 0.02
    inactive: bool = False  # every third step leaves one tensor out


FAST, SLOW = str(2.0**-16), "0.999"
CASES = {
    **{f"one of {size}": Case((size,), ("float32",)) for size in (1, 7, 8, 511, 512, 513)},
    **{f"{dtype} weights": Case((520, 130), (dtype, dtype), elements=(0,)) for dtype in DTYPES},
    "dtypes side by side": Case((600, 0, 33, 1500, 77), ("float16", "float32", "float64", "float32", "bfloat16")),
    "nothing at all": Case((0, 0), ("float32", "float64")),
    "without weight decay": Case((1030, 65), ("float32", "float32"), decay=0.0, elements=(1,)),
    "some without gradients": Case((1030, 65, 512), ("float32", "bfloat16", "float32"), inactive=True, elements=(2,)),
    "fast decay": Case((700, 40), ("float32", "float32"), momentum=FAST),
    "slow decay": Case((700, 40), ("float32", "float64"), momentum=SLOW),
    "many tensors": Case(tuple(1 + i % 11 for i in range(400)), ("float32",) * 400),
}


def state_of(case: Case, state_bits: int, rng: np.random.Generator, rule=oracle.SGD):
    """X and the states."""
    return random_integers(rng, case.sizes, state_bits, rule)


def steps_of(case: Case, state_bits: int, count: int, rng: np.random.Generator, rule=oracle.SGD) -> list[Step]:
    """Every tensor has its own momentum; now and then states or weights are rescaled, or the weights' scale decays."""
    steps, tensors = [], range(len(case.sizes))
    tops = {rule.decay: 2 * case.decay, rule.decay + 1: 0.02}
    for t, momentum in enumerate(momentum_schedule(case.momentum, count)):
        elements = None
        if case.elements:
            elements = [
                [
                    random_elements(rng, size, 0, tops[k], state_bits) if i in case.elements and k in tops else None
                    for k in range(rule.numbers)
                ]
                for i, size in enumerate(case.sizes)
            ]
        steps.append(
            Step(
                normal_gradients(rng, case.sizes, case.dtypes, [not (case.inactive and t % 3 == i % 3) for i in tensors]),
                [numbers_of(rule, 0.1 + 0.4 * (t % 2), case.decay, 0.01 * (1 + i % 3), i) for i in tensors],
                [momentum if i % 2 == 0 else (1 + momentum) / 2 for i in tensors],
                elements,
                weight_factor=0.6 if t % 4 == 2 else 1.0,
                rescale=[(i % 2 + 1, 1 - i % 2) for i in tensors] if t % 5 == 3 else None,
            )
        )
    return steps


def assert_same(mine: Bucket, expected: Bucket, record: Record | None = None, other: Record | None = None) -> None:
    """Every bit of state, weights, outcome, skips and planes."""
    mine.assert_equals([t.to(mine.device) for t in expected.tensors()])
    assert mine.outcome.tolist() == expected.outcome.tolist()
    assert torch.equal(mine.skipped.cpu(), expected.skipped.cpu())
    if record is not None and other is not None:
        assert torch.equal(record.planes.cpu(), other.planes.cpu()), "planes differ"


def walk(expected: Bucket, others: list[Bucket], steps: list[Step]) -> None:
    """All buckets go through the steps, back, and every phase is compared with the first one's."""
    start, records = expected.snapshot(), []
    for step in steps:
        mine = [bucket.step(step) for bucket in (expected, *others)]
        for bucket, record in zip(others, mine[1:], strict=True):
            assert_same(bucket, expected, record, mine[0])
        records.append(mine)
    for step, mine in zip(reversed(steps), reversed(records), strict=True):
        for back in (True, False, True):
            for bucket, record in zip((expected, *others), mine, strict=True):
                bucket.move(step, record, back)
                assert_same(bucket, expected, record, mine[0])
        expected.undo_states(step, mine[0])
        for bucket, record in zip(others, mine[1:], strict=True):
            bucket.undo_states(step, record)
            assert_same(bucket, expected)
    assert not any(expected.flags)
    for bucket in (expected, *others):
        bucket.assert_equals([t.to(bucket.device) for t in start])
        bucket.assert_guards()
