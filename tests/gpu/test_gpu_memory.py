"""The kernels on tensors with not a byte to spare: what a memory checker needs to see an access beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adjoint_problems import ADJOINT_CASES, AdjointBucket, assert_same_trace, journey
from core_problems import EACH_RULE, WIDTHS, Bucket
from device_matrix import CASES, state_of, steps_of, walk
from gpu_machine import DEVICE, GPU

pytestmark = [*GPU, pytest.mark.sanitize]


class JustSized:
    """Every tensor is allocated by itself, without guards around it."""

    def _guarded(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full([size], 77, dtype=dtype, device=self.device)


class JustSizedBucket(JustSized, Bucket):
    pass


class JustSizedAdjointBucket(JustSized, AdjointBucket):
    pass


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("case", CASES)
def test_steps_there_and_back(case, state_bits, rule):
    problem, rng = CASES[case], np.random.default_rng(3)
    given = *state_of(problem, state_bits, rng, rule), list(problem.dtypes), state_bits
    steps = steps_of(problem, state_bits, 4, rng, rule)
    walk(Bucket(*given, rule=rule), [JustSizedBucket(*given, device=DEVICE, rule=rule)], steps)


@WIDTHS
@pytest.mark.parametrize("case", ADJOINT_CASES)
def test_steps_back_with_their_adjoint(case, state_bits):
    problem = ADJOINT_CASES[case]
    mine = journey(problem, state_bits, lambda *given: JustSizedAdjointBucket(*given, device=DEVICE), count=4)
    assert_same_trace(mine, journey(problem, state_bits, AdjointBucket, count=4))
