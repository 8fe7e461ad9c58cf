"""Steps of two buckets that share a device's word of refusal, one of them refused. Used by tests/core, tests/cuda, tests/gpu."""

from __future__ import annotations

import numpy as np
import oracle
import torch
from core_problems import OPS, Bucket, Step, normal_gradients, numbers_of, random_integers

REFUSED, STEPS = 3, 7
NONE_REFUSED = 2**63 - 1
SIZES = [[2100, 70_001], [513, 1030]]
DTYPES = [["float32", "bfloat16"], ["float64", "float16"]]


def journey(device: str, state_bits: int, bad: float, ops=OPS, rule=oracle.SGD) -> list[torch.Tensor]:
    """Of every step: the outcome and the state of both buckets, and the word; on the CPU. The second bucket's steps REFUSED and
    REFUSED + 2 are bad."""
    rng = np.random.default_rng(8)
    buckets = [
        Bucket(*random_integers(rng, sizes, state_bits, rule), dtypes, state_bits, ops, device, rule=rule)
        for sizes, dtypes in zip(SIZES, DTYPES, strict=True)
    ]
    word = torch.full([1], NONE_REFUSED, device=device)
    trace = []
    for number in range(STEPS):
        ticket = {"first_refused": word, "number": number}
        taken = []
        for i, bucket in enumerate(buckets):
            gradients = normal_gradients(rng, bucket.sizes, bucket.dtypes, [True] * 2)
            if number in (REFUSED, REFUSED + 2) and i == 1:
                gradients[1][1025] = bad
            step = Step(gradients, [numbers_of(rule, 1.0, 0.01, 0.1)] * 2, 0.1, rescale=[(0, number % 2)] * 2)
            taken.append((bucket, step, bucket.step(step, **ticket)))
            trace.append(outcome_of(bucket))
        for bucket, step, record in taken:  # all of them, though only those of a refused step are to be taken back
            bucket.undo(step, record, **ticket)
            bucket.scales = record.after if number < REFUSED else record.before
        for bucket in buckets:
            trace += [t.cpu().clone() for t in bucket.tensors()]
            bucket.assert_guards()
        trace.append(word.cpu().clone())
    return trace


def outcome_of(bucket: Bucket) -> torch.Tensor:
    """Of a refused step only which gradients were bad: the rest is made of the bits of NaNs, which are not every device's."""
    outcome = bucket.outcome.cpu().clone()
    if any(bucket.flags):
        flags = outcome[1 :: bucket.words] & oracle.BAD_INCREMENT
        outcome.zero_()[1 :: bucket.words] = flags
    return outcome


def assert_stands_still(trace: list[torch.Tensor]) -> None:
    """Every step before the refused one moved the state; that one and all later ones left it where it was."""
    entries = len(trace) // STEPS
    steps = [trace[i * entries : (i + 1) * entries] for i in range(STEPS)]
    states = [step[2:-1] for step in steps]
    assert [int(step[-1]) for step in steps] == [NONE_REFUSED] * REFUSED + [REFUSED] * (STEPS - REFUSED)
    for i, step in enumerate(steps):
        flags = [bool(outcome[1 :: len(outcome) // 2].any()) for outcome in step[:2]]  # each of two tensors
        assert flags == [False, i == REFUSED]
    for i in range(1, STEPS):
        same = [torch.equal(a, b) for a, b in zip(states[i], states[i - 1], strict=True)]
        assert all(same) if i >= REFUSED else not any(same)
    for step in steps[REFUSED + 1 :]:  # no outcome of a step that did not take place
        assert not any(bool(outcome.any()) for outcome in step[:2])
