"""Gradients that grow by many orders of magnitude from one step to the next, under decays that shift many bits themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_problems import frozen, setting_gradients
from torch import nn

import reversible_hypergrad as rh

TINY = torch.tensor([1e-8, -1e-8, 7e-9])
LARGE = torch.tensor([0.2, 0.0, -1e-4])


@pytest.mark.parametrize("state_bits", [32, 64])
@pytest.mark.parametrize("beta2", [2.0**-16, 0.5, 0.999])
@pytest.mark.parametrize(("make", "like"), [(rh.ReversibleAdam, torch.optim.Adam), (rh.ReversibleRAdam, torch.optim.RAdam)])
def test_second_moments_follow(make: Any, like: Any, beta2: float, state_bits: int) -> None:
    """They are kept in 64 bits beside weights of 32, and must lose as many in the step: nothing of the old ones is left over.
    A moment that was too large made its weight move too little, by 1e-2 of an update."""
    mine, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    settings = {"lr": 0.003, "betas": (0.45, beta2), "eps": 1e-6}
    optimizer, reference = make([mine], **settings, state_bits=state_bits), like([other], **settings)
    start, closures = frozen(optimizer), []
    for gradient in (TINY, LARGE):
        closures.append(setting_gradients([mine], [gradient]))
        optimizer.step(closures[-1])
        setting_gradients([other], [gradient.double()])()
        reference.step()
    # Updates are of some 1e-3, and float32 has 6e-8 of weights of 1.
    assert (mine.double() - other).abs().max() < 2e-6
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


@pytest.mark.parametrize("state_bits", [32, 64])
def test_a_float16_weight_that_needs_room_is_not_taken_for_too_large(state_bits: int) -> None:
    """What a refused step has left in it says nothing about the weight that it will have."""
    weight = nn.Parameter(torch.full((17,), 0.05, dtype=torch.float16))
    optimizer = rh.ReversibleSGD([weight], lr=0.05, momentum=2.0**-16, state_bits=state_bits)
    start, closures = frozen(optimizer), []
    for size in (1e-6, 1.0, 4e4):
        closures.append(setting_gradients([weight], [torch.full_like(weight, size)]))
        optimizer.step(closures[-1])
    assert torch.allclose(weight.float(), torch.full((17,), -2000.0), rtol=2e-3)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start
