"""The kernels on tensors with not a byte to spare: what a memory checker needs to see an access beside them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from core_problems import DTYPES, WIDTHS, same_bits
from device_matrix import CASES, Case
from gpu_machine import DEVICE, GPU

from reversible_hypergrad.engine.bucket import Bucket, Coefficients
from reversible_hypergrad.engine.outcome import read

pytestmark = [*GPU, pytest.mark.sanitize]


def journey(case: Case, state_bits: int, device: str) -> list[torch.Tensor]:
    """Every state of a few steps that spill, and back. Tensors are allocated one by one, of just their size."""
    generator = torch.Generator().manual_seed(0)

    def numbers(scale: float) -> list[torch.Tensor]:
        drawn = [scale * torch.randn(size, generator=generator) for size in case.sizes]
        return [n.to(DTYPES[dtype]).to(device) for n, dtype in zip(drawn, case.dtypes, strict=True)]

    weights = numbers(1.0)
    bucket = Bucket(weights, [f"weights[{i}]" for i in range(len(weights))], state_bits)
    rates = [
        torch.rand(size, generator=generator).mul(0.1).to(device) if i in case.rates else 0.1 for i, size in enumerate(case.sizes)
    ]
    c = tuple(Coefficients.of(bucket.format, lr=rate, weight_decay=case.decay, dampening=0.0) for rate in rates)
    given = [numbers(0.1) for _ in range(4)]
    if case.inactive:
        given = [[None if t % 3 == i % 3 else g for i, g in enumerate(gradients)] for t, gradients in enumerate(given)]
    records, outcomes, seen = [], [], []

    def look() -> None:
        seen.extend(t.detach().cpu().clone() for t in (bucket.x, bucket.v, bucket.accumulators, *weights))

    for gradients in given:
        record, outcome = bucket.step(gradients, Fraction(1, 10), c, None, True)
        records.append(record)
        outcomes.append(outcome)
        look()
    for record, gradients in zip(reversed(records), reversed(given), strict=True):
        outcomes.append(bucket.move_weights(record, back=True, with_hash=True))
        outcomes.append(bucket.undo_velocity(record, gradients, True))
        look()
    read(outcomes)
    assert not any(any(outcome.flags) for outcome in outcomes)
    return [*seen, torch.tensor([outcome.hash for outcome in outcomes])]


@WIDTHS
@pytest.mark.parametrize("case", CASES)
def test_states_of_the_cpu(case, state_bits):
    problem = CASES[case]
    if not any(problem.sizes):
        pytest.skip("a bucket has weights")
    for mine, expected in zip(journey(problem, state_bits, DEVICE), journey(problem, state_bits, "cpu"), strict=True):
        assert same_bits(mine, expected)
