"""One autocast around all of training: its cache would keep casts of weights that steps have moved since."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reversible_hypergrad as rh


def closures(model, optimizer):
    x = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(0))

    def closure(step):
        def evaluate():
            optimizer.zero_grad()
            loss = model(x[step]).float().square().mean()
            loss.backward()
            return loss

        return evaluate

    return closure


def trained(around, inside, back):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1)
    start = [p.detach().clone() for p in model.parameters()]
    closure = closures(model, optimizer)

    def step(k):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
            return optimizer.step(closure(k))

    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        for k in range(6):
            step(k)
    end = [p.detach().clone() for p in model.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=back):
        for k in reversed(range(6)):
            with torch.autocast("cpu", torch.bfloat16):
                optimizer.step_back(closure(k))
    assert all(torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True))
    return end


@pytest.mark.parametrize("back", [True, False])
def test_gradients_are_those_of_the_present_weights(back):
    in_steps, around = trained(False, True, back), trained(True, False, back)
    assert all(torch.equal(a, b) for a, b in zip(in_steps, around, strict=True))
