"""ReversibleSGD and train() on a GPU."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_problems import EACH_RULE
from gpu_machine import DEVICE, GPU, Captured, no_synchronisation  # noqa: F401
from queued_steps import (
    BAD,
    OUTGROWN,
    Side,
    assert_goes_on_from_before_a_refused_step,
    assert_grown_and_undone,
    assert_refused_once,
    grow,
    queued_from_the_second,  # noqa: F401
)
from ticket_journey import assert_stands_still, journey
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.reversible.lateness import LOOK_AT_FIRST
from reversible_hypergrad.reversible.outcome import read
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.reversible.state import State

pytestmark = GPU

WIDTHS = pytest.mark.parametrize("state_bits", [64, 32], ids=lambda bits: f"state{bits}")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 5))


def test_the_build_has_cuda():
    assert rh.core.cuda_in_build(), "there is a GPU, but no nvcc was found when the library was built"


@WIDTHS
def test_same_weights_as_on_the_cpu_from_the_same_gradients(state_bits):
    models = [network(), network().to(DEVICE)]
    # None is so small that it would outgrow 32 bits: what then makes room does so at another step on each device.
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        other.data.copy_(nn.init.normal_(one))
    optimizers = [
        rh.ReversibleSGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3, state_bits=state_bits) for m in models
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.to(DEVICE)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other.cpu())


@WIDTHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_thousand_steps_are_undone(state_bits, dtype):
    model = network().to(DEVICE, dtype)
    start = copy.deepcopy(model.state_dict())
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.01, momentum=0.9, state_bits=state_bits)
    x = torch.randn(1000, 16, 20, device=DEVICE, dtype=dtype)
    y = torch.randint(5, (1000, 16), device=DEVICE)

    def closure(t: int):
        def loss():
            optimizer.zero_grad()
            value = F.cross_entropy(model(x[t]), y[t])
            value.backward()
            return value

        return loss

    for t in range(1000):
        optimizer.step(closure(t))
    assert not torch.equal(model[0].weight, start["0.weight"])
    optimizer.rewind(closure(t) for t in reversed(range(1000)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]), name


AT_ONCE = pytest.mark.usefixtures("queued_from_the_second")


@AT_ONCE
@WIDTHS
def test_bad_gradient_is_refused_and_nothing_has_changed(state_bits):
    model = network().to(DEVICE)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1, momentum=0.9, state_bits=state_bits)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    model[0].weight.grad[3, 3] = torch.nan
    optimizer.step()
    model[0].weight.grad[3, 3] = 1.0
    optimizer.step()
    with pytest.raises(FloatingPointError, match=r"step 2: .*not finite.*1 later step"):
        optimizer.synchronize()
    for p, expected in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, expected)


@WIDTHS
def test_a_step_waits_for_nothing(state_bits, no_synchronisation):  # noqa: F811
    model = network().to(DEVICE)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.001, momentum=0.9, state_bits=state_bits)
    start = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    for _ in range(LOOK_AT_FIRST):
        optimizer.step()
    with no_synchronisation():
        for _ in range(60):
            optimizer.step()
    optimizer.synchronize()
    optimizer.rewind([lambda: None] * (LOOK_AT_FIRST + 60))
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]), name


@WIDTHS
def test_queued_steps_have_the_bits_of_the_cpu(state_bits):
    """Scales and hashes, too, at looks and between them; the way back is the CPU's as well."""
    mine, expected = Side(state_bits, device=DEVICE), Side(state_bits)
    for side in (mine, expected):
        for step in range(150):
            side.step(step)
            side.scheduler.step()
    mine.assert_same(expected)
    mine.rewind(150)
    mine.assert_at_start()


@AT_ONCE
@WIDTHS
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("after", [0, 20])
def test_training_goes_on_from_before_a_refused_step(state_bits, bad, after):
    assert_goes_on_from_before_a_refused_step(Side(state_bits, device=DEVICE), Side(state_bits), BAD[bad], after)


@AT_ONCE
@WIDTHS
@pytest.mark.parametrize("outgrown", OUTGROWN)
def test_steps_after_a_refused_one_are_looked_at_and_make_room(state_bits, outgrown):
    assert_refused_once(Side(state_bits, device=DEVICE), outgrown)


@WIDTHS
def test_what_grows_from_look_to_look_gets_room(state_bits):
    side = Side(state_bits, device=DEVICE)
    grow(side)
    assert_grown_and_undone(side)


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("bad", [math.nan, 60000.0])
def test_a_refused_step_stops_the_later_ones_on_the_device(state_bits, rule, bad):
    mine, expected = (journey(device, state_bits, bad, rule=rule) for device in (DEVICE, "cpu"))
    assert_stands_still(mine)
    for a, b in zip(mine, expected, strict=True):
        assert torch.equal(a, b)


def test_a_step_is_refused_inside_of_a_capture():
    model = network().to(DEVICE)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.01)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    for p, expected in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, expected)
    optimizer.step()


def test_a_captured_backward_with_steps_between_its_replays():
    """As torch's users do it: static inputs, one graph of loss and backward, and the optimizer outside."""
    results = []
    for captured in (False, True):
        model = network().to(DEVICE)
        optimizer = rh.ReversibleSGD(model.parameters(), lr=0.01)
        x = torch.randn(50, 16, 20, generator=torch.Generator().manual_seed(3)).to(DEVICE)
        static = x[0].clone()

        def backward(model=model, optimizer=optimizer, static=static):
            optimizer.zero_grad(set_to_none=False)
            model(static).square().mean().backward()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            backward()
        torch.cuda.current_stream().wait_stream(side)
        replay = Captured(backward) if captured else backward
        for batch in x:
            static.copy_(batch)
            replay()
            optimizer.step()
        trained = [p.detach().clone() for p in model.parameters()]

        def closure(batch, static=static, replay=replay):
            static.copy_(batch)
            replay()

        optimizer.rewind([lambda batch=batch: closure(batch) for batch in reversed(x)])
        for p, expected in zip(model.parameters(), network().parameters(), strict=True):
            assert torch.equal(p.cpu(), expected)
        results.append(trained)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_parameters_on_the_cpu_and_on_the_gpu():
    torch.manual_seed(0)
    near, far = nn.Linear(7, 9), nn.Linear(9, 3).to(DEVICE)
    parameters = [*near.parameters(), *far.parameters()]
    start = [p.detach().clone() for p in parameters]
    optimizer = rh.ReversibleSGD(parameters, lr=0.1, momentum=0.9)
    x = torch.randn(4, 7)

    def closure():
        optimizer.zero_grad()
        loss = far(near(x).to(DEVICE)).square().mean()
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    optimizer.rewind([closure] * 10)
    for p, expected in zip(parameters, start, strict=True):
        assert torch.equal(p, expected)


@WIDTHS
def test_hypergradients_of_a_run(state_bits):
    """Reversible(), whose every step is checked to be undone, against the CPU's answer."""
    torch.manual_seed(2)
    batches = [(torch.randn(16, 20), torch.randint(5, (16,))) for _ in range(8)]
    results = []
    for device in ("cpu", DEVICE):
        model = network().to(device)
        log_lr = torch.full((30,), -3.0, requires_grad=True)

        def loss(model, batch, hyperparameters):
            return F.cross_entropy(model(batch[0]), batch[1])

        moved = [tuple(t.to(device) for t in batch) for batch in batches]
        trained = rh.train(
            model,
            loss,
            lambda step, moved=moved: moved[step % len(moved)],
            steps=30,
            optimizer=rh.SGD(lr=log_lr.exp(), momentum=0.9),
            hyperparameters={},
            adjoint=rh.Reversible(state_bits=64 if device == "cpu" else state_bits),
        )
        inputs, targets = moved[0]
        F.cross_entropy(torch.func.functional_call(model, dict(trained), (inputs,)), targets).backward()
        results.append(log_lr.grad)
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-6)


@WIDTHS
def test_moves_are_queued_without_waiting(state_bits, no_synchronisation):  # noqa: F811
    """A state's steps and both phases of undoing; their outcomes are read together afterwards."""
    weights = [torch.randn(300, 20, device=DEVICE), torch.randn(77, device=DEVICE).bfloat16()]
    gradients = [torch.randn_like(w) for w in weights]
    start = [w.clone() for w in weights]
    state = State(weights, ["a", "b"], rh.SGD(lr=0.1), state_bits)
    hash_ = state.hash()
    settings = SimpleNamespace(lr=0.1, momentum=0.1, dampening=0.0, weight_decay=0.01)
    given = StepNumbers(np.array([0.1, 1.0]), np.array([1.0, 0.01, 0.1]), settings=(settings,))
    first, _ = state.step(gradients, given, None, True)  # looks, and chooses the quanta
    with no_synchronisation():
        records, outcomes = [], []
        for _ in range(20):
            record, outcome = state.step(gradients, given, None, True, look=False)
            records.append(record)
            outcomes.append(outcome)
        for record in [*reversed(records), first]:
            outcomes.append(state.move_weights(record, back=True, with_hash=True))
            outcomes.append(state.undo_states(record, gradients, True))
    assert not any(outcome.is_read for outcome in outcomes)
    read(outcomes)
    assert not any(any(outcome.flags) for outcome in outcomes)
    assert len({outcome.hash for outcome in outcomes[:20]}) == 20
    assert all(record.planes.numel() for record in records)  # 0.1 halves three times or four
    assert state.hash() == hash_
    assert state.is_empty()
    state.restore_initial()
    for w, expected in zip(weights, start, strict=True):
        assert torch.equal(w, expected)
