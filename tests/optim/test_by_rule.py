"""The drop-in optimizers of rules without a program: their formulas, undoing them, what they save, and what they refuse."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from optim_problems import (
    digits_closure,
    frozen,
    mlp,
    plain,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
    train_and_rewind,
)
from torch import nn

import reversible_hypergrad as rh


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Any) -> None:
    """These models are too small for two, and waiting threads cost more than the work."""
    set_num_threads(1)


class Lion(torch.optim.Optimizer):
    """As its paper has it."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    sign = torch.sign(beta1 * m + (1 - beta1) * p.grad)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * sign)
                    m.mul_(beta2).add_((1 - beta2) * p.grad)


@dataclass
class Case:
    """One optimizer, with settings, what it must train as, and its bits per weight and step without weight decay."""

    make: Any
    settings: dict[str, Any]
    like: Any
    bits: float
    options: dict[str, Any]  # of the reference alone


CASES = {
    "RMSprop": Case(
        rh.ReversibleRMSprop,
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.8, "eps": 1e-4, "weight_decay": 0.1},
        torch.optim.RMSprop,
        math.log2(1 / 0.9) + math.log2(1 / 0.8),
        {},
    ),
    "RMSprop, centered": Case(
        rh.ReversibleRMSprop,
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.8, "eps": 1e-4, "weight_decay": 0.1, "centered": True},
        torch.optim.RMSprop,
        2 * math.log2(1 / 0.9) + math.log2(1 / 0.8),
        {},
    ),
    "RAdam": Case(
        rh.ReversibleRAdam,
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1},
        torch.optim.RAdam,
        math.log2(1 / 0.8) + math.log2(1 / 0.9),
        {},
    ),
    "RAdam, decoupled": Case(
        rh.ReversibleRAdam,
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1, "decoupled_weight_decay": True},
        torch.optim.RAdam,
        math.log2(1 / 0.8) + math.log2(1 / 0.9),
        {},
    ),
    "Lion": Case(
        rh.ReversibleLion, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}, Lion, 1 + math.log2(1 / 0.9), {}
    ),
    "Muon": Case(
        rh.ReversibleMuon,
        {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"},
        torch.optim.Muon,
        math.log2(1 / 0.8),
        {"nesterov": False},
    ),
}  # fmt: skip
SHAPES = ((4, 8), (9, 3))

by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
by_width = pytest.mark.parametrize("state_bits", [64, 32])


@by_case
@by_width
def test_trains_as_its_model(case: Case, state_bits: int) -> None:
    """Given gradients, float64 weights: 40 steps of rounding to quanta, 2^-40 of the first gradients' largest with 64 bits (2^-26
    and float32 with 32), in updates of 0.01. A number that Muon then rounds to the other of two neighbours in bfloat16 changes an
    update by 2^-8 of it: none with 64 bits, some with 32. A mix that Lion finds on the other side of 0 would be an lr away."""
    ours, theirs = random_parameters(*SHAPES, dtype=torch.float64), random_parameters(*SHAPES, dtype=torch.float64)
    optimizer = case.make(ours, **case.settings, state_bits=state_bits)
    model = _like(case, theirs)
    for step in range(40):
        gradients = random_gradients(ours, step)
        optimizer.step(setting_gradients(ours, gradients))
        setting_gradients(theirs, gradients)()
        model.step()
    bound = 1e-9 if state_bits == 64 else 1e-3 if case.like is torch.optim.Muon else 1e-5
    for own, other in zip(ours, theirs, strict=True):
        assert (own - other).abs().max() < bound


def _like(case: Case, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if case.like is Lion:
        return Lion(parameters, case.settings)
    return case.like(parameters, **case.settings, **case.options)


@by_case
@by_width
def test_undone_bit_for_bit(case: Case, state_bits: int) -> None:
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 10, bias=False))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.003}]
    optimizer = case.make(groups, **case.settings, state_bits=state_bits)

    def prepare(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)

    train_and_rewind(optimizer, lambda step: digits_closure(model, optimizer, step), 30, prepare)


@by_case
def test_its_bits(case: Case) -> None:
    """A bit of a state comes whole: one more or less each, in 200 steps, and one where its numbers have outgrown the integers."""
    optimizer = case.make(random_parameters((64, 64)), **{**case.settings, "weight_decay": 0.0})
    take_steps(optimizer, 200)
    memory = optimizer.memory()
    assert memory["limit_bits_per_weight_step"] == pytest.approx(case.bits)
    assert abs(memory["information_bits_per_weight_step"] - case.bits) <= 4 / 200


def with_pauses(optimizer: Any, parameters: list[nn.Parameter], count: int) -> list[Any]:
    """Closures of steps taken, in some of which a parameter has no gradient."""
    closures = []
    for step in range(count):
        gradients: list[Any] = random_gradients(parameters, step, 0.1)
        gradients[1][0] = 0.0
        if step % 3 == 1:
            gradients[1] = None
        closures.append(setting_gradients(parameters, gradients))
        optimizer.step(closures[-1])
    return closures


@by_case
def test_saved_and_copied(case: Case) -> None:
    parameters = random_parameters(*SHAPES, (5, 5))
    optimizer = case.make(parameters, **case.settings)
    start = frozen(optimizer)
    closures = with_pauses(optimizer, parameters, 12)
    now = frozen(optimizer)
    assert frozen(copy.deepcopy(optimizer)) == now
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = case.make(parameters, **{**case.settings, "lr": 0.5})
    other.load_state_dict(torch.load(file, weights_only=True))
    assert frozen(other) == now
    other.rewind(reversed(closures))
    assert frozen(other) == start


@by_case
def test_another_gradient_is_found(case: Case) -> None:
    """And taken back, to the last bit: signs are those of the step, not of that gradient."""
    parameters = random_parameters(*SHAPES)
    optimizer = case.make(parameters, **case.settings)
    start = frozen(optimizer)
    closures = with_pauses(optimizer, parameters, 9)
    with refused(optimizer, rh.ReversalError, "closure"):
        optimizer.step_back(closures[3])
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


@by_case
def test_a_gradient_that_loses_bits_is_found(case: Case) -> None:
    """One so much larger that the integers could not hold what it leaves: the bits that the step shifted out are still there."""
    parameters = random_parameters(*SHAPES)
    optimizer = case.make(parameters, **case.settings)
    start = frozen(optimizer)
    closures = with_pauses(optimizer, parameters, 12)
    for _ in range(12):
        large = [1e5 * gradient for gradient in random_gradients(parameters, 7)]
        with refused(optimizer, rh.ReversalError):
            optimizer.step_back(setting_gradients(parameters, large))
        optimizer.step_back(closures.pop())
    assert frozen(optimizer) == start


def test_muon_beside_adamw() -> None:
    """Matrices by one, the rest by the other: undone in one go, the second inside of the first."""
    model = mlp()
    muon = rh.ReversibleMuon([p for p in model.parameters() if p.dim() == 2], lr=0.02)
    adamw = rh.ReversibleAdamW([p for p in model.parameters() if p.dim() != 2], lr=0.01)
    start = plain(list(model.parameters()))

    def closure_of(step: int) -> Any:
        closure = digits_closure(model, muon, step)

        def both() -> Any:
            adamw.zero_grad()
            return closure()

        return both

    losses = []
    for step in range(20):
        losses.append(closure_of(step)())
        muon.step()
        adamw.step()
    assert losses[-1] < losses[0]
    for step in reversed(range(20)):
        muon.step_back(lambda step=step: adamw.step_back(closure_of(step)))
    assert plain(list(model.parameters())) == start


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "momentum-0": (rh.ReversibleRMSprop, {"momentum": 0.0}, ValueError, r"momentum value: 0.0. .*in \[2\^-16, 1\]"),
    "alpha-1": (rh.ReversibleRMSprop, {"alpha": 1.0}, ValueError, r"alpha value: 1.0. Expected a number in \[2\^-16, 1\)"),
    "eps": (rh.ReversibleRMSprop, {"eps": -1.0}, ValueError, "epsilon value: -1.0. Expected a finite number >= 0"),
    "centered": (rh.ReversibleRMSprop, {"centered": 1}, TypeError, "centered: expected True or False, got 1"),
    "maximize": (rh.ReversibleRMSprop, {"maximize": True}, ValueError, "maximize=True is not supported.*negative loss"),
    "capturable": (rh.ReversibleRAdam, {"capturable": True}, ValueError, "capturable=True is not supported"),
    "differentiable": (rh.ReversibleRAdam, {"differentiable": True}, ValueError, "differentiable=True"),
    "lr": (rh.ReversibleRAdam, {"lr": float("inf")}, ValueError, "learning rate: inf"),
    "beta1": (rh.ReversibleRAdam, {"betas": (0.0, 0.9)}, ValueError, "beta parameter at index 0: 0.0"),
    "beta2": (rh.ReversibleLion, {"betas": (0.0, 0.0)}, ValueError, "beta parameter at index 1: 0.0"),
    "decay": (rh.ReversibleLion, {"lr": 1.0, "weight_decay": 1.0}, ValueError, r"weight_decay value: 1.0.*lr \* weight_decay"),
    "steps": (rh.ReversibleMuon, {"ns_steps": 0}, ValueError, "ns_steps: expected an integer from 1 to 99, got 0"),
    "bits": (rh.ReversibleMuon, {"state_bits": 16}, ValueError, "state_bits value: 16"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "settings", "error", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(make: Any, settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(random_parameters((3, 3)), **settings)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"params: ReversibleMuon expected matrices, got a parameter of shape \(3,\).*AdamW"):
        rh.ReversibleMuon(random_parameters((3, 3), (3,)))


def test_options_are_the_same_for_all_groups() -> None:
    parameters = random_parameters((3, 3), (2, 2))
    optimizer = rh.ReversibleMuon(parameters[:1])
    with pytest.raises(ValueError, match=r"Invalid ns_steps value: 3\. Expected 5 in every group"):
        optimizer.add_param_group({"params": parameters[1:], "ns_steps": 3})
    optimizer.param_groups[0]["nesterov"] = True
    with pytest.raises(ValueError, match="Invalid nesterov value: True"):
        optimizer.step(setting_gradients(parameters[:1], random_gradients(parameters[:1], 0)))
