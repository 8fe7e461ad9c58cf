"""Steps of two buckets that share a device's word of refusal, one of them refused. Used by tests/cuda and tests/gpu."""

from __future__ import annotations

from fractions import Fraction

import torch
from reversible_hypergrad.reversible.bucket import Bucket, Coefficients

from reversible_hypergrad.reversible.lateness import Ticket, none_refused

REFUSED, STEPS = 3, 7
SHAPES = [[((3, 700), torch.float32), ((70_001,), torch.bfloat16)], [((513,), torch.float64), ((1030,), torch.float16)]]


def journey(device: str, state_bits: int, bad: float) -> list[torch.Tensor]:
    """States after every step, and what the words of outcomes hold, on the CPU. The second bucket's step REFUSED is bad."""
    generator = torch.Generator().manual_seed(8)
    buckets = []
    for shapes in SHAPES:
        weights = [torch.randn(shape, generator=generator).to(device, dtype) for shape, dtype in shapes]
        buckets.append(Bucket(weights, ["a", "b"], state_bits))
    c = (Coefficients.of(buckets[0].format, lr=0.1, weight_decay=0.01, dampening=0.0),)
    word = none_refused(torch.device(device))
    trace = []
    for number in range(STEPS):
        taken = []
        for i, bucket in enumerate(buckets):
            gradients = [torch.randn(w.shape, generator=generator).to(device, w.dtype) for w in bucket.weights]
            if number in (REFUSED, REFUSED + 2) and i == 1:
                gradients[1][1025] = bad
            record, outcome = bucket.step(gradients, Fraction(1, 10), c, None, True, Ticket(word, number))
            taken.append((bucket, record, gradients))
            trace += [torch.tensor(outcome.flags), torch.tensor(outcome.hash)]
        for bucket, record, gradients in taken:
            bucket.retract(record, gradients, Ticket(word, number))
        for bucket in buckets:
            state = (*bucket.weights, bucket.x, bucket.v, bucket.accumulators)
            trace += [t.cpu().clone() for t in state]
        trace.append(word.cpu().clone())
        assert [bucket.bound > 1 for bucket in buckets] == [True, True]
    return trace


def assert_stands_still(trace: list[torch.Tensor]) -> None:
    """Every step before the refused one moved the state; that one and all later ones left it where it was."""
    entries = len(trace) // STEPS
    steps = [trace[i * entries : (i + 1) * entries] for i in range(STEPS)]
    states = [step[4:-1] for step in steps]
    flags, words = [[int(step[j].sum()) for j in (0, 2)] for step in steps], [int(step[-1]) for step in steps]
    assert words == [2**63 - 1] * REFUSED + [REFUSED] * (STEPS - REFUSED)
    assert [[bool(f) for f in pair] for pair in flags] == [[False, i == REFUSED] for i in range(STEPS)]
    for i in range(1, STEPS):
        same = [torch.equal(a, b) for a, b in zip(states[i], states[i - 1], strict=True)]
        assert all(same) if i >= REFUSED else not any(same)
    for step in steps[REFUSED + 1 :]:
        assert [int(step[j]) for j in (1, 3)] == [0, 0]  # no hash of a step that did not take place
