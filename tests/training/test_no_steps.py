"""A run of no steps, with schedules: the initial weights come out, and gradients go straight through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reversible_hypergrad as rh

RULES = {
    "SGD": rh.SGD,
    "momentum": lambda schedule: rh.SGD(0.1, momentum=schedule),
    "TracedSGD": rh.TracedSGD,
    "AdamW": rh.AdamW,
    "betas": lambda schedule: rh.Adam(0.1, (schedule, 0.9)),
    "Lion": rh.Lion,
    "RMSprop": lambda schedule: rh.RMSprop(schedule, momentum=0.9),
    "RAdam": rh.RAdam,
    "LAMB": rh.LAMB,
    "Muon": rh.Muon,
}
STRATEGIES = {
    "reversible": rh.Reversible(),
    "segments": rh.Reversible(segments="auto"),
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "tree": rh.RecursiveCheckpoint(),
    "truncated": rh.Truncated(2),
    "unroll": rh.Unroll(),
    "auto": "auto",
}


def loss(model, batch, l2):
    return model(batch).square().mean() + l2 * sum(p.square().sum() for p in model.parameters())


def train(rule, adjoint, schedule, **more):
    model, l2 = nn.Linear(3, 1, bias=False), torch.tensor(0.1, requires_grad=True)
    optimizer = RULES[rule](schedule)
    trained = rh.train(model, loss, torch.randn(4, 5, 3), optimizer=optimizer, hyperparameters=l2, adjoint=adjoint, **more)
    return model, trained, l2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_steps(strategy, rule):
    schedule = torch.empty(0, requires_grad=True)
    model, trained, l2 = train(rule, STRATEGIES[strategy], schedule, steps=0)
    assert torch.equal(trained["weight"], model.weight)
    by_schedule, by_l2, by_weight = torch.autograd.grad(trained["weight"].square().sum(), [schedule, l2, model.weight])
    assert by_schedule.shape == (0,)
    assert float(by_l2) == 0
    assert torch.equal(by_weight, 2 * model.weight)


@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Lion"])
def test_no_further_steps(rule):
    """Of a run that is continued, with the schedule of the whole one."""
    schedule = torch.full((4,), 0.01, requires_grad=True)
    _, trained, _ = train(rule, None, schedule)
    _, again, _ = train(rule, None, schedule, start=trained.state, steps=0)
    assert torch.equal(again["weight"], trained["weight"])
    expected = torch.autograd.grad(trained["weight"].square().sum(), schedule, retain_graph=True)
    (found,) = torch.autograd.grad(again["weight"].square().sum(), schedule)
    assert bool(found.any())
    torch.testing.assert_close(found, expected[0])
