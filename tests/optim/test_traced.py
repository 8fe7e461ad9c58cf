"""ReversibleTracedSGD: its formula, undoing it, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from optim_problems import (
    digits_closure,
    frozen,
    mlp,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
    train_and_rewind,
)

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])
by_kind = pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "nesterov": True}], ids=["plain", "nesterov"])


@by_width
@by_kind
@pytest.mark.parametrize("trace_bits", [1, 4, 16])
def test_the_formula(trace_bits: int, settings: dict[str, Any], state_bits: int) -> None:
    """In float64, beside it."""
    (weight,) = random_parameters((33,))
    optimizer = rh.ReversibleTracedSGD(
        [weight], lr=0.1, weight_decay=0.1, trace_bits=trace_bits, state_bits=state_bits, **settings
    )
    w, p, v, nu, mu = weight.detach().double(), 0.0, 0.0, 2.0**-trace_bits, settings.get("momentum", 0.0)
    for step in range(40):
        (gradient,) = random_gradients([weight], step)
        optimizer.step(setting_gradients([weight], [gradient]))
        g = gradient.double() + 0.1 * w
        p, v = nu * p + (1 - nu) * g, mu * v + g
        w = w - 0.1 * (p + mu * v)
    assert torch.allclose(weight.detach().double(), w, rtol=0, atol=1e-6 if state_bits == 64 else 1e-4)


@by_kind
def test_near_torch_sgd(settings: dict[str, Any]) -> None:
    """With 16 bits of trace a gradient counts by 1 - 2^-16 at once: so far apart are the steps, and the weights some of it."""
    ours, theirs = mlp(), mlp()
    start = torch.cat([p.detach().flatten() for p in ours.parameters()])
    optimizers = [
        (ours, rh.ReversibleTracedSGD(ours.parameters(), lr=0.05, trace_bits=16, **settings)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.05, **settings)),
    ]
    for model, optimizer in optimizers:
        for step in range(100):
            optimizer.step(digits_closure(model, optimizer, step))
    ends = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model, _ in optimizers]
    assert (ends[0] - ends[1]).norm() < 10 * 2**-16 * (ends[1] - start).norm()


@by_width
@by_kind
def test_undone_bit_for_bit(settings: dict[str, Any], state_bits: int) -> None:
    model = mlp()
    optimizer = rh.ReversibleTracedSGD(model.parameters(), lr=0.1, weight_decay=1e-3, state_bits=state_bits, **settings)
    train_and_rewind(optimizer, lambda step: digits_closure(model, optimizer, step), 60)


@by_kind
def test_its_bits(settings: dict[str, Any]) -> None:
    (weight,) = random_parameters((4096,))
    optimizer = rh.ReversibleTracedSGD([weight], lr=0.01, trace_bits=3, **settings)
    take_steps(optimizer, 100)
    memory = optimizer.memory()
    assert 3 <= memory["information_bits_per_weight_step"] <= 1.02 * memory["limit_bits_per_weight_step"]


@by_kind
def test_saved_and_copied(settings: dict[str, Any]) -> None:
    parameters = random_parameters((9,), (3, 5))
    optimizer = rh.ReversibleTracedSGD(parameters, lr=0.1, **settings)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 12, scale=0.1)
    now = frozen(optimizer)
    assert frozen(copy.deepcopy(optimizer)) == now
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = rh.ReversibleTracedSGD(parameters, lr=0.5, **settings)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert frozen(other) == now
    other.rewind(reversed(closures))
    assert frozen(other) == start


def test_another_gradient_is_found() -> None:
    parameters = random_parameters((9,))
    optimizer = rh.ReversibleTracedSGD(parameters, lr=0.1)
    closures = take_steps(optimizer, 4)
    with refused(optimizer, rh.ReversalError, "closure"):
        optimizer.step_back(closures[0])
    optimizer.rewind(reversed(closures))


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "momentum-without-nesterov": ({"momentum": 0.9}, ValueError, "momentum value: 0.9.*rh.ReversibleSGD"),
    "nesterov-without-momentum": ({"nesterov": True}, ValueError, "momentum value: 0.0.*nesterov=True"),
    "momentum-2": ({"momentum": 2.0, "nesterov": True}, ValueError, "momentum value: 2.0"),
    "trace-0": ({"trace_bits": 0}, ValueError, "trace_bits.*from 1 to 16, got 0"),
    "trace-1.5": ({"trace_bits": 1.5}, TypeError, "trace_bits.*from 1 to 16, got 1.5"),
    "nesterov-1": ({"nesterov": 1}, TypeError, "nesterov: expected True or False, got 1"),
    "lr": ({"lr": -1.0}, ValueError, "learning rate: -1.0"),
    "differentiable": ({"differentiable": True}, ValueError, "differentiable=True"),
}


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rh.ReversibleTracedSGD(random_parameters((3,)), **settings)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_copy_goes_on(nesterov: bool) -> None:
    optimizer = rh.ReversibleTracedSGD(random_parameters((3,)), momentum=0.9 * nesterov, nesterov=nesterov)
    take_steps(optimizer, 3)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        take_steps(other, 2, first=3)
        take_steps(fresh := copy.deepcopy(optimizer), 2, first=3)
        assert frozen(other) == frozen(fresh)
