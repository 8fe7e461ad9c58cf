"""Random steps with garbage among their gradients, done, undone and redone. Used by tests/core, tests/cuda and tests/gpu."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle
import torch
from core_problems import CHANGING, DTYPES, Bucket, Step, integers, normal_gradients, random_elements, units

GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e5, -1e4, 3.0, 65504]


def random_state(rng: np.random.Generator, rule=oracle.SGD):
    """X and the states of one to three tensors of awkward sizes, their dtypes and the width of state."""
    state_bits = int(rng.choice([32, 64]))
    velocity, weight = units(state_bits)
    count = int(rng.integers(1, 4))
    sizes = [int(size) for size in rng.choice([1, 5, 8, 9, 63, 130, 511, 512, 513, 777], count)]
    dtypes = [str(dtype) for dtype in rng.choice(list(DTYPES), count)]
    x = [integers(rng, int(rng.choice([2 ** (state_bits - 2), weight])), size, state_bits) for size in sizes]
    v = [integers(rng, int(rng.choice([2 ** (state_bits - 2), velocity], p=[0.1, 0.9])), size, state_bits) for size in sizes]
    return x, [v, *(wide_integers(rng, sizes) for _ in rule.powers[1:])], dtypes, state_bits


def wide_integers(rng: np.random.Generator, sizes: list[int]) -> list[torch.Tensor]:
    return [integers(rng, 2 ** int(rng.choice([42, 62])), size, 64).abs() for size in sizes]


def random_right_and_wrong(rng, sizes, dtypes, state_bits, rule=oracle.SGD) -> tuple[Step, Step]:
    """A step with some garbage among its gradients; the same step with a few, or all, of its gradients changed."""
    count = len(sizes)
    momentum = [float(rng.choice([*CHANGING, rng.uniform(0.01, 1)])) for _ in sizes]
    signs, exponents = rng.choice([-1, 1], (3, count)), rng.uniform([[-3], [-4], [-5]], [[1], [1], [2]], (3, count))
    share, decay, lr = signs * 10.0**exponents
    decay *= rng.random(count) < 0.5
    numbers = list(zip(share.tolist(), decay.tolist(), lr.tolist(), strict=True))
    if rule is oracle.Adam:
        ends = rng.choice([[1.0, 1e-8, 0.0], [3.0, 0.0, 1e-9], [0.5, 1.0, 0.1]], count).tolist()
        numbers = [(own[0], 10.0 ** float(rng.uniform(-4, 0)), *own[1:], *end) for own, end in zip(numbers, ends, strict=True)]
    rescale = [(int(a), int(b)) for a, b in rng.choice([0, 1, 5], (count, 2), p=[0.8, 0.1, 0.1])]
    per_weight = rule.decay, rule.decay + 1
    elements = [
        [
            random_elements(rng, size, -0.1, 0.1, state_bits) if k in per_weight and rng.random() < 0.2 else None
            for k in range(rule.numbers)
        ]
        for size in sizes
    ]
    takes_part = rng.random(count) < 0.85

    def gradients(spoil):
        out = normal_gradients(rng, sizes, dtypes, takes_part, 10.0 ** rng.choice([-2, 0, 0, 2, 4]))
        for gradient in out:
            if gradient is not None and rng.random() < spoil:
                where = torch.from_numpy(rng.random(len(gradient)) < rng.choice([0.01, 0.2]))
                gradient[where] = torch.from_numpy(rng.choice(GARBAGE, int(where.sum()))).to(gradient)
        return out

    right = gradients(0.3)
    wrong = gradients(0.3) if rng.random() < 0.5 else copy.deepcopy(right)
    for gradient in wrong:
        if gradient is not None:
            gradient[int(rng.integers(len(gradient)))] = float(rng.choice([0, 1, 1e3, math.nan, 1e30]))
    shared = numbers, momentum, elements, float(rng.choice([1.0, 1.0, 0.7])), rescale
    return Step(right, *shared), Step(wrong, *shared)


def there_and_back(bucket: Bucket, right: Step, wrong: Step) -> tuple[list[torch.Tensor], int]:
    """step; undone with the wrong gradients, redone; undone with the right ones; left done if nothing was flagged.

    Returns what it saw on the way, on the CPU, and how many blocks were skipped. Of a phase after a gradient of NaN, of whose
    bits an integer of 64 bits is made, it saw nothing, as other devices have other NaNs.
    """
    trace, any_of_64 = [], any(layout.bits == 64 for layout in oracle.layouts_of(bucket.rule, bucket.state_bits))
    has_nan = {id(step): any(g is not None and bool(g.isnan().any()) for g in step.gradients) for step in (right, wrong)}

    def record(step: Step, *more: torch.Tensor) -> list[torch.Tensor]:
        if not (any_of_64 and has_nan[id(step)]):
            trace.extend(t.cpu().clone() for t in (bucket.x, *bucket.states, bucket.outcome, bucket.skipped, *more))
        return bucket.snapshot()

    bucket.skipped.zero_()
    before, planned = bucket.snapshot(), bucket.record(right)
    bucket.step(right, record=planned)
    flags, written = bucket.flags, planned.planes.clone()
    done = record(right, written)
    bucket.undo(wrong, planned)
    skips = int(bucket.skipped.sum())
    if not has_nan[id(right)]:
        record(wrong)
    bucket.step(wrong, bucket.skipped, planned)
    bucket.assert_equals(done)
    assert torch.equal(planned.planes, written)
    bucket.undo(right, planned)
    record(right)
    assert not bucket.skipped.any()
    bucket.assert_equals(before)
    if not any(flags):
        bucket.step(right, record=planned)
        bucket.assert_equals(done)
    bucket.assert_guards()
    return trace, skips
