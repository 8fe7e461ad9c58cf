"""Micro-batches that do not replay, numbers that are not finite, and bad arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import reversible_hypergrad as rh


def test_a_batch_that_is_changed_in_place():
    def loss(model, x, _):
        return model(x.add_(1.0)).square().mean()

    data = torch.randn(3, 4, 3)
    with pytest.raises(rh.ReversalError, match="accumulate: step 0: the loss or gradient of micro-batch 0 was another one"):
        rh.train(nn.Linear(3, 1), loss, lambda step: data[step].clone(), steps=3, optimizer=rh.SGD(lr=0.1), accumulate=2)


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint()])
def test_a_loss_that_changes_on_the_way_back(adjoint):
    own, switched = torch.Generator(), []

    def loss(model, x, _):
        noise = torch.randn(x.shape, generator=own) if switched else 0.0
        return model(x + noise).square().mean()

    model = nn.Linear(3, 1)
    trained = rh.train(model, loss, torch.randn(3, 4, 3), optimizer=rh.SGD(lr=0.1), accumulate=2, adjoint=adjoint)
    switched.append(True)
    with pytest.raises(rh.ReversalError, match="accumulate: step 2: the loss or gradient of micro-batch 0"):
        trained["weight"].sum().backward()
    assert model.weight.grad is None


@pytest.mark.parametrize("what", ["batch", "setting"])
def test_what_is_seen_after_a_failed_reversal(what):
    calls, data, factor = [], torch.randn(3, 4, 3), [1.0]

    def batches(step):
        calls.append(step)
        x = data[step] + (0.01 * len(calls) if what == "batch" else 0.0)
        return rh.MicroBatches([data[step], x])

    def loss(model, x, _):
        return factor[0] * model(x).square().mean()

    trained = rh.train(nn.Linear(3, 1), loss, batches, steps=3, optimizer=rh.SGD(lr=0.1))
    factor[0] = 2.0 if what == "setting" else 1.0
    seen = "the batch of step 2 is another one each time" if what == "batch" else "batch and gradient of step 2 are the same"
    with pytest.raises(rh.ReversalError, match=seen):
        trained["weight"].sum().backward()


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint(), rh.Unroll()])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite(bad, adjoint):
    def loss(model, x, _):
        return model(x).square().mean()

    data = torch.randn(3, 4, 3)
    data[1, 3, 0] = bad
    with pytest.raises(FloatingPointError, match="step 1: "):
        rh.train(nn.Linear(3, 1), loss, data, optimizer=rh.SGD(lr=0.1), accumulate=2, adjoint=adjoint)


def train(**settings):
    batches = settings.pop("batches", torch.ones(2, 4, 3))
    return rh.train(nn.Linear(3, 1), lambda m, x, _: m(x).sum(), batches, steps=2, optimizer=rh.SGD(lr=0.1), **settings)


BAD = {
    "zero": ({"accumulate": 0}, ValueError, "accumulate: expected an integer >= 1, got 0"),
    "True": ({"accumulate": True}, TypeError, "accumulate: expected an integer >= 1, got True"),
    "text": ({"accumulate": "list"}, TypeError, "accumulate: expected an integer >= 1, got 'list'"),
    "float": ({"accumulate": 2.0}, TypeError, "accumulate: expected an integer >= 1, got 2.0"),
    "does not divide": (
        {"accumulate": 3, "batches": [{"x": torch.ones(3, 3), "y": [torch.ones(4)]}] * 2},
        ValueError,
        r"accumulate: step 0: .* into 3 equal parts, got batch\['y'\]\[0\] of shape \(4,\)",
    ),
    "a scalar": ({"accumulate": 2, "batches": [(torch.ones(4), torch.ones(()))] * 2}, ValueError, r"batch\[1\] of shape \(\)"),
    "nothing to cut": ({"accumulate": 2, "batches": ["abcd"] * 2}, ValueError, "tensors to cut into 2 parts.*in str"),
    "twice": (
        {"accumulate": 2, "batches": [rh.MicroBatches([torch.ones(4, 3)])] * 2},
        ValueError,
        "got rh.MicroBatches and accumulate=2. Leave one of them out",
    ),
    "not one per step": (
        {"batches": rh.MicroBatches([torch.ones(4, 3)] * 2)},
        TypeError,
        "batches: expected a sequence .* got rh.MicroBatches, which is the batch of one step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    settings, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        train(**settings)


def test_no_micro_batches():
    with pytest.raises(ValueError, match="micro_batches: expected at least one, got none"):
        rh.MicroBatches([])
