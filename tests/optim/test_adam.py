"""ReversibleAdam and ReversibleAdamW: torch's optimizers, undone bit for bit, in the program's bits and the operations'."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import (
    Transformer,
    convnet,
    digits_batch,
    frozen,
    mlp,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
    undo_digits,
    warm_up_and_cosine,
)
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh

KINDS = {"Adam": (rh.ReversibleAdam, torch.optim.Adam), "AdamW": (rh.ReversibleAdamW, torch.optim.AdamW)}
by_kind = pytest.mark.parametrize("kind", KINDS)
by_width = pytest.mark.parametrize("state_bits", [64, 32])


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    set_num_threads(1)


# Training as torch's does


def trained(make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, steps: int) -> Tensor:
    """The weights of an MLP on digits, on float64 gradients of a float64 model, else float32 ones."""
    model = mlp(hidden=32).to(dtype)
    optimizer = make(model.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = warm_up_and_cosine(step, steps, 3e-3)
        images, labels = digits_batch(step, 64)
        optimizer.zero_grad()
        F.cross_entropy(model(images.to(dtype)), labels).backward()
        optimizer.step()
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@by_kind
def test_as_near_to_float64_as_float32_is(kind: str) -> None:
    """After 1,000 steps, whatever the width of the state.

    Allowance: the runs' gradients are of float32, whose rounding alone leads float32 Adam so far away; that is one draw of an
    error, within a factor of 3 of another one.
    """
    ours, theirs = KINDS[kind]
    exact = trained(lambda p: theirs(p, weight_decay=0.01), torch.float64, 1000)
    distances = {
        "float32": trained(lambda p: theirs(p, weight_decay=0.01), torch.float32, 1000),
        "64": trained(lambda p: ours(p, weight_decay=0.01, state_bits=64), torch.float32, 1000),
        "32": trained(lambda p: ours(p, weight_decay=0.01, state_bits=32), torch.float32, 1000),
    }
    found = {name: float((weights - exact).norm() / exact.norm()) for name, weights in distances.items()}
    assert 1e-8 < found["float32"] < 1e-3
    assert found["64"] < 3 * found["float32"], found
    assert found["32"] < 3 * found["float32"], found


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decay": {"weight_decay": 0.1, "lr": 0.01},
    "betas": {"betas": (0.5, 0.9), "lr": 0.01},
    "large eps": {"eps": 0.1, "lr": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1, "lr": 0.01},
    "tensor lr": {"lr": torch.tensor(0.01, dtype=torch.float64)},
}


@by_width
@by_kind
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_trajectory_of_torch_in_float64(settings: dict[str, Any], kind: str, state_bits: int) -> None:
    """The same gradients, so that nothing amplifies what rounding leaves: of 64 bits with weights of double 2^-42 of the largest
    weight per step, of 32 bits 2^-26 of it, and of the moments as much of an update of about lr."""
    ours, theirs = KINDS[kind]
    mine, other = random_parameters((33,), (4, 5), dtype=torch.float64), random_parameters((33,), (4, 5), dtype=torch.float64)
    optimizers = ours(mine, state_bits=state_bits, **settings), theirs(other, **settings)
    for step in range(60):
        gradients = random_gradients(mine, step)
        for parameters, optimizer in zip((mine, other), optimizers, strict=True):
            setting_gradients(parameters, gradients)()
            optimizer.step()
    quantum = 2.0**-42 if state_bits == 64 else 2.0**-26
    largest = max(float(p.detach().abs().max()) for p in other)
    allowance = 60 * quantum * 4 * largest + 60 * 2.0 ** (-40 if state_bits == 64 else -20) * float(settings.get("lr", 1e-3))
    for p, q in zip(mine, other, strict=True):
        assert float((p - q).abs().max()) < allowance


@by_width
@by_kind
def test_tensors_without_gradient_keep_their_own_count_of_steps(kind: str, state_bits: int) -> None:
    """As in torch, a step that passes a tensor by counts neither for its moments nor for its bias correction."""
    ours, theirs = KINDS[kind]
    mine, other = random_parameters((9,), (5,), (7,)), random_parameters((9,), (5,), (7,), dtype=torch.float64)
    for p, q in zip(mine, other, strict=True):
        q.data.copy_(p.data)
    optimizer, torchs = ours(mine, lr=0.05, state_bits=state_bits), theirs(other, lr=0.05)
    start, closures = frozen(optimizer), []
    for step in range(40):
        gradients = [
            None if (i == 1 and step % 3) or (i == 2 and step < 5) else g for i, g in enumerate(random_gradients(mine, step))
        ]
        closures.append(setting_gradients(mine, gradients))
        optimizer.step(closures[-1])
        torchs.step(setting_gradients(other, [None if g is None else g.double() for g in gradients]))
    # Float32 weights are rounded when they are read, 2^-25 of them; the integers add less in 40 steps of 0.05.
    for p, q in zip(mine, other, strict=True):
        assert torch.allclose(p.double(), q, rtol=2.0**-24, atol=40 * 0.05 * 2.0**-20)
    half = copy.deepcopy(optimizer.state_dict())
    again = ours(mine, lr=1.0, state_bits=state_bits)
    again.load_state_dict(half)
    assert frozen(again) == frozen(optimizer)
    again.rewind(reversed(closures))
    assert frozen(again)["weights"] == start["weights"]


# Undoing

MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet, "transformer": Transformer}


@by_width
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("model", MODELS)
def test_undone_bit_for_bit(model: str, decay: float, schedule: str, state_bits: int) -> None:
    undo_digits(rh.ReversibleAdamW, MODELS[model](), 200, schedule, decay, state_bits)


@by_width
@by_kind
def test_gradients_from_1e_12_to_1e4(kind: str, state_bits: int) -> None:
    """They grow and shrink sixteen decades: quanta follow, and every step is undone."""
    parameters = random_parameters((130,), (6, 7))
    optimizer = KINDS[kind][0](parameters, lr=1e-3, state_bits=state_bits)
    start, closures = frozen(optimizer), []
    for step in range(400):
        scale = 10.0 ** (-4 + 8 * math.sin(2 * math.pi * step / 200 - math.pi / 2))
        closures.append(setting_gradients(parameters, random_gradients(parameters, step, scale)))
        optimizer.step(closures[-1])
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer)["weights"] == start["weights"]


@by_width
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, state_bits: int) -> None:
    parameters = random_parameters((65,), (5, 9), dtype=dtype)
    optimizer = rh.ReversibleAdamW(parameters, lr=1e-2, weight_decay=0.1, state_bits=state_bits)
    start = frozen(optimizer)["weights"]
    closures = take_steps(optimizer, 60, scale=0.1)
    assert frozen(optimizer)["weights"] != start
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer)["weights"] == start


def test_clipped_and_scaled_with_a_skipped_step() -> None:
    """A scaler that finds an infinite gradient takes no step, and there is none to undo."""
    model = mlp()
    optimizer = rh.ReversibleAdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    start, scales = frozen(optimizer)["weights"], []
    for step in range(20):
        scale = scaler.get_scale()
        optimizer.zero_grad()
        images, labels = digits_batch(step)
        scaler.scale(F.cross_entropy(model(images), labels)).backward()
        if step == 7:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        if step != 7:
            scales.append((step, scale))
    assert len(scales) == 19
    assert scaler.get_scale() == 2.0**9

    def closure_of(step: int, scale: float) -> Callable[[], None]:
        def closure() -> None:
            optimizer.zero_grad()
            images, labels = digits_batch(step)
            (scale * F.cross_entropy(model(images), labels)).backward()
            for p in model.parameters():
                p.grad.mul_(1 / scale)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)

        return closure

    optimizer.rewind(closure_of(step, scale) for step, scale in reversed(scales))
    assert frozen(optimizer)["weights"] == start


# What it keeps


@by_width
@pytest.mark.parametrize("settings", [{}, {"betas": (0.5, 0.9), "lr": 0.1, "weight_decay": 0.1}], ids=["defaults", "others"])
def test_its_bits(settings: dict[str, Any], state_bits: int) -> None:
    """Within 1 % of log2(1/b1) + log2(1/b2) + log2(1/(1 - lr wd)) at 1,000 steps, whatever rescaling takes included. Whole bits
    are kept, so that at the defaults one bit of s and none of w have come by then."""
    (weight,) = random_parameters((20_000,))
    optimizer = rh.ReversibleAdamW([weight], state_bits=state_bits, **settings)
    gradients = random_gradients([weight], 0)
    for step in range(1000):
        weight.grad = gradients[0] * (0.5 + 0.5 * math.cos(step))
        optimizer.step()
    memory = optimizer.memory()
    betas = settings.get("betas", (0.9, 0.999))
    limit = (
        -math.log2(betas[0]) - math.log2(betas[1]) - math.log2(1 - settings.get("lr", 1e-3) * settings.get("weight_decay", 0.01))
    )
    assert memory["limit_bits_per_weight_step"] == pytest.approx(limit, rel=1e-9)
    assert memory["information_bits_per_weight_step"] <= 1.01 * limit
    assert memory["state_bytes"] == 20_000 * (24 if state_bits == 64 else 16)


@by_kind
def test_saved_and_copied(kind: str) -> None:
    ours = KINDS[kind][0]
    parameters = random_parameters((9,), (3, 5))
    optimizer = ours(parameters, lr=0.1, betas=(0.8, 0.99))
    start = frozen(optimizer)
    closures = take_steps(optimizer, 12, scale=0.1)
    now = frozen(optimizer)
    assert frozen(copy.deepcopy(optimizer)) == now
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = ours(parameters, lr=0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert frozen(other) == now
    other.rewind(reversed(closures))
    assert frozen(other)["weights"] == start["weights"]
    assert other.param_groups[0]["betas"] == (0.8, 0.99)


def test_settings_come_back() -> None:
    (weight,) = random_parameters((9,))
    lr = torch.tensor(0.1)
    optimizer = rh.ReversibleAdamW([weight], lr=lr, betas=[0.9, 0.99])
    closures = take_steps(optimizer, 1)
    lr.fill_(0.2)
    optimizer.param_groups[0].update(betas=(0.5, 0.9), weight_decay=0.3)
    closures += take_steps(optimizer, 1, first=1)
    optimizer.rewind(reversed(closures))
    group = optimizer.param_groups[0]
    assert group["lr"] is lr
    assert lr.item() == torch.tensor(0.1).item()
    assert tuple(group["betas"]) == (0.9, 0.99)
    assert group["weight_decay"] == 0.01


# The program and the rule's functions give the same bits


class PlainAdam(rh.Adam):
    program = ""


class PlainAdamW(rh.AdamW):
    program = ""


class OperationsAdam(rh.ReversibleAdam):
    rule = PlainAdam()


class OperationsAdamW(rh.ReversibleAdamW):
    rule = PlainAdamW()


@by_width
@pytest.mark.parametrize("pair", [(rh.ReversibleAdam, OperationsAdam), (rh.ReversibleAdamW, OperationsAdamW)], ids=KINDS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_program_and_the_functions_give_the_same_bits(pair: Any, dtype: torch.dtype, state_bits: int) -> None:
    sides = []
    for make in pair:
        parameters = random_parameters((700,), (3, 5), dtype=dtype)
        sides.append((parameters, make(parameters, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, state_bits=state_bits)))
    closures: list[list[Any]] = [[], []]
    for step in range(60):
        for i, (parameters, optimizer) in enumerate(sides):
            gradients = random_gradients(parameters, step, scale=0.01)
            gradients[0][::3] = 0
            gradients[0][1::3] *= 1e-9  # below a quantum of the squares
            closures[i].append(setting_gradients(parameters, gradients))
            optimizer.step(closures[i][-1])
        states = [optimizer._history.parts[0].state for _, optimizer in sides]
        for one, other in zip((states[0].x, *states[0].z), (states[1].x, *states[1].z), strict=True):
            assert torch.equal(one, other), f"step {step}"
    for (_, optimizer), own in zip(sides, closures, strict=True):
        optimizer.rewind(reversed(own))
    assert frozen(sides[0][1])["weights"] == frozen(sides[1][1])["weights"]


# Refusals

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "amsgrad": ({"amsgrad": True}, ValueError, "amsgrad=True cannot be undone.*Use amsgrad=False"),
    "capturable": ({"capturable": True}, ValueError, "capturable=True is not supported.*capturable=False"),
    "differentiable": ({"differentiable": True}, ValueError, "differentiable=True"),
    "beta1": ({"betas": (1.0, 0.9)}, ValueError, r"beta parameter at index 0: 1.0. Expected a number in \[2\^-16, 1\)"),
    "beta2": ({"betas": (0.9, 0.0)}, ValueError, "beta parameter at index 1: 0.0"),
    "eps": ({"eps": 0.0}, ValueError, "epsilon value: 0.0. Expected a finite number > 0"),
    "lr": ({"lr": -1.0}, ValueError, "learning rate: -1.0"),
    "decay": ({"lr": 2.0, "weight_decay": 0.5}, ValueError, "weight_decay value: 0.5 with the learning rate 2.0.*below 1"),
}


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_at_construction(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rh.ReversibleAdamW(random_parameters((3,)), **settings)


def test_refused_at_the_step() -> None:
    parameters = random_parameters((9,))
    optimizer = rh.ReversibleAdamW(parameters, lr=0.1)
    closures = take_steps(optimizer, 3)
    optimizer.param_groups[0]["betas"] = (0.9, 1.0)
    with refused(optimizer, ValueError, "beta parameter at index 1: 1.0"):
        optimizer.step()
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    parameters[0].grad = torch.full((9,), torch.nan)
    with refused(optimizer, FloatingPointError, "its gradient is not finite"):
        optimizer.step()
    optimizer.rewind(reversed(closures))


def test_another_gradient_is_found() -> None:
    parameters = random_parameters((9,))
    optimizer = rh.ReversibleAdamW(parameters, lr=0.1)
    closures = take_steps(optimizer, 4)
    with refused(optimizer, rh.ReversalError, "closure"):
        optimizer.step_back(closures[0])
    optimizer.rewind(reversed(closures))
