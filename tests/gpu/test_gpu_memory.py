"""The kernels on tensors with not a byte to spare: what a memory checker needs to see an access beside them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from adjoint_problems import ADJOINT_CASES
from core_problems import DTYPES, WIDTHS, same_bits
from device_matrix import CASES, Case
from gpu_machine import DEVICE, GPU
from reversible_hypergrad.reversible.bucket import Bucket, Coefficients

from reversible_hypergrad.reversible.outcome import read
from reversible_hypergrad.reversible.pull_back import BucketAdjoint, Wanted

pytestmark = [*GPU, pytest.mark.sanitize]


def journey(case: Case, state_bits: int, device: str, adjoint: bool) -> list[torch.Tensor]:
    """Every state of a few steps that spill, and back, on request with the adjoint. Tensors are allocated one by one, of just
    their size."""
    generator = torch.Generator().manual_seed(0)

    def numbers(scale: float) -> list[torch.Tensor]:
        drawn = [scale * torch.randn(size, generator=generator) for size in case.sizes]
        return [n.to(DTYPES[dtype]).to(device) for n, dtype in zip(drawn, case.dtypes, strict=True)]

    weights = numbers(1.0)
    bucket = Bucket(weights, [f"weights[{i}]" for i in range(len(weights))], state_bits)
    rates = [
        torch.rand(size, generator=generator).mul(0.1).to(device) if i in case.elements else 0.1
        for i, size in enumerate(case.sizes)
    ]
    c = tuple(Coefficients.of(bucket.format, lr=rate, weight_decay=case.decay, dampening=0.0) for rate in rates)
    given = [numbers(0.1) for _ in range(4)]
    if case.inactive:
        given = [[None if t % 3 == i % 3 else g for i, g in enumerate(gradients)] for t, gradients in enumerate(given)]
    records, outcomes, seen = [], [], []
    real = torch.float64 if "float64" in case.dtypes else torch.float32
    aw, av = (torch.randn(len(bucket.x), generator=generator, dtype=real).to(device) for _ in range(2))
    vectors = BucketAdjoint(bucket, aw, av, Wanted(True, True, True, True)) if adjoint else None
    by_lr, others = (torch.zeros(kinds, len(weights), dtype=torch.float64, device=device) for kinds in (1, 3))

    def look() -> None:
        every = bucket.x, bucket.v, bucket.accumulators, aw, av, by_lr, others, *weights
        seen.extend(t.detach().cpu().clone() for t in every)

    for gradients in given:
        record, outcome = bucket.step(gradients, Fraction(1, 10), c, None, True)
        records.append(record)
        outcomes.append(outcome)
        look()
    for record, gradients in zip(reversed(records), reversed(given), strict=True):
        if vectors is None:
            outcomes.append(bucket.move_weights(record, back=True, with_hash=True))
            outcomes.append(bucket.undo_velocity(record, gradients, True))
        else:
            outcomes.append(vectors.undo_weights(record, True, by_lr))
            outcomes.append(vectors.undo_velocity(record, gradients, True, gradients, (0.75, 0.01), others))
        look()
    read(outcomes)
    assert not any(any(outcome.flags) for outcome in outcomes)
    return [*seen, torch.tensor([outcome.hash for outcome in outcomes])]


@WIDTHS
@pytest.mark.parametrize(("case", "adjoint"), [*((c, False) for c in CASES), *((c, True) for c in ADJOINT_CASES)])
def test_states_of_the_cpu(case, adjoint, state_bits):
    problem = (ADJOINT_CASES if adjoint else CASES)[case]
    if not any(problem.sizes):
        pytest.skip("this case has no weights at all, which the kernels take but the engine never passes on")
    mine, expected = (journey(problem, state_bits, device, adjoint) for device in (DEVICE, "cpu"))
    for one, other in zip(mine, expected, strict=True):
        assert same_bits(one, other)
