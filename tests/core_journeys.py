"""Random steps with garbage among their gradients, done, undone and redone. Used by tests/core, tests/cuda and tests/gpu."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle
import torch
from core_problems import DTYPES, NONE_SKIPPED, Bucket, Step, coefficients, integers, normal_gradients


def random_state(rng: np.random.Generator):
    """X and V of one to three tensors of awkward sizes, their dtypes and the width of state."""
    state_bits = int(rng.choice([32, 64]))
    fmt = oracle.FORMATS[state_bits]
    count = int(rng.integers(1, 4))
    sizes = [int(size) for size in rng.choice([1, 5, 8, 9, 63, 130, 511, 512, 513, 777], count)]
    dtypes = [str(dtype) for dtype in rng.choice(list(DTYPES), count)]
    x = [integers(rng, rng.choice([fmt.weight_limit, 2**fmt.weight_bits]), size, state_bits) for size in sizes]
    v = [integers(rng, 2**fmt.velocity_bits, size, state_bits) for size in sizes]
    return x, v, dtypes, state_bits


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


def there_and_back(bucket: Bucket, right: Step, wrong: Step) -> list[torch.Tensor]:
    """step; undone with the wrong gradients, redone; undone with the right ones; left done if nothing was flagged.

    Returns everything that it saw on the way, on the CPU.
    """
    trace = []

    def record():
        trace.extend(t.cpu().clone() for t in (bucket.x, bucket.v, bucket.s, bucket.outcome, bucket.skipped))
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
    return [*trace, *(plane.cpu() for plane in written)]
