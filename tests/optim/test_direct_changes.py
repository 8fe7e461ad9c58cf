"""Groups that are changed without the optimizer, and settings that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reversible_hypergrad as rh

OPTIMIZERS = [rh.ReversibleSGD, rh.ReversibleAdamW, rh.ReversibleLion]


def made(optimizer):
    model = torch.nn.Linear(3, 2)
    ours = optimizer([model.weight], lr=0.1)
    model(torch.ones(4, 3)).sum().backward()
    return model, ours


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_parameter_put_into_a_group(optimizer, steps):
    model, ours = made(optimizer)
    for _ in range(steps):
        ours.step()
    ours.param_groups[0]["params"].append(model.bias)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"expected \[1\] parameters in its groups, got \[2\].*add_param_group"):
        ours.step()
    assert torch.equal(model.weight, before)
    ours.param_groups[0]["params"].pop()
    ours.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_group_put_into_the_list(optimizer):
    model, ours = made(optimizer)
    ours.param_groups.append({**ours.param_groups[0], "params": [model.bias]})
    with pytest.raises(RuntimeError, match=r"expected \[1\] parameters in its groups, got \[1, 1\]"):
        ours.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_parameter_taken_out(optimizer):
    _, ours = made(optimizer)
    ours.param_groups[0]["params"].pop()
    with pytest.raises(RuntimeError, match=r"expected \[1\] parameters in its groups, got \[0\]"):
        ours.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_settings_that_are_no_numbers(optimizer):
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"Invalid learning rate: expected a number, got '0.1' of type str"):
        optimizer([weight], lr="0.1")
    ours = optimizer([weight], lr=np.float32(0.1))
    ours.param_groups[0]["lr"] = "0.1"
    weight.grad = torch.ones(3)
    with pytest.raises(TypeError, match="Invalid learning rate: expected a number"):
        ours.step()
    assert torch.equal(weight, torch.ones(3))
