"""Trains as torch.optim.SGD does: prescribed gradients, compared with torch's SGD in float64 within a derived bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from optim_problems import quanta, random_gradients, random_parameters
from torch import Tensor, nn

import reversible_hypergrad as rh


class Twins:
    """ReversibleSGD and float64 torch.optim.SGD, fed the same gradients, and a bound on how far they may be apart.

    Derivation, per parameter, with quanta qv (velocity) and qw (weight) as they are after the step, and momentum mu: where the
    scale has halved the velocity is rounded to a quantum, the gradient is rounded to half of one, the change of the weight to
    half of one, and a weight whose quantum grows to a whole one. With e_v and e_w the distances in
    velocity and weight, one step gives
        e_v <- mu*e_v + 1.5*qv + r*(max|v| + 4*max|g|) + share*weight_decay*e_w
        e_w <- e_w + lr*e_v + 1.5*qw + 4*r*lr*max|v|
    where r is the relative rounding of the few real operations and of the scales, float64 or (32-bit state) float32. At the start
    e_v = 0 and e_w = qw / 2. What is seen is the weight rounded to the parameter's dtype: half an ulp on top.
    """

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, state_bits: int = 64, **settings: Any):
        self.real = 2.0**-52 if state_bits == 64 else 2.0**-23
        self.ours_params: list[nn.Parameter] = []
        self.theirs_params: list[nn.Parameter] = []
        self.errors: list[tuple[float, float]] = []
        ours, theirs = self._parameters(shapes, dtype)
        self.ours = rh.ReversibleSGD(ours, state_bits=state_bits, **settings)
        self.theirs = torch.optim.SGD(theirs, **settings)
        self.steps = 0

    def _parameters(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
        ours = random_parameters(*shapes, seed=len(self.ours_params), dtype=dtype)
        theirs = [nn.Parameter(p.detach().double().clone()) for p in ours]
        self.ours_params += ours
        self.theirs_params += theirs
        self.errors += [(0.0, 0.0)] * len(ours)
        return ours, theirs

    def add_group(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        ours, theirs = self._parameters(shapes, dtype)
        self.ours.add_param_group({"params": ours, **settings})
        self.theirs.add_param_group({"params": theirs, **settings})

    def set(self, **settings: Any) -> None:
        for group in self.ours.param_groups + self.theirs.param_groups:
            group.update(settings)

    def step(self, skip: Sequence[int] = ()) -> None:
        gradients = random_gradients(self.ours_params, seed=1000 + self.steps, scale=0.1)
        for i, (ours, theirs, g) in enumerate(zip(self.ours_params, self.theirs_params, gradients, strict=True)):
            ours.grad, theirs.grad = (None, None) if i in skip else (g, g.double())
        self.ours.step()
        steps = quanta(self.ours)
        index = {id(p): i for i, p in enumerate(self.theirs_params)}
        for group in self.theirs.param_groups:
            for p in group["params"]:
                i = index[id(p)]
                if i not in skip and p.numel():
                    self.errors[i] = self._grown(self.errors[i], p, group, gradients[i].abs().max().item(), *steps[i])
        self.theirs.step()
        self.steps += 1
        self.check()

    def _grown(self, errors: tuple[float, float], p: Tensor, group: dict[str, Any], g: float, qv: float, qw: float) -> Any:
        ev, ew = errors
        lr = float(group["lr"])
        buffer = self.theirs.state[p].get("momentum_buffer") if p in self.theirs.state else None
        first = buffer is None
        v = 0.0 if buffer is None else buffer.abs().max().item()
        g += group["weight_decay"] * p.detach().abs().max().item()
        share = abs(1 - group["dampening"]) if not first else 1
        ew = qw / 2 if first else ew
        ev = float(group["momentum"]) * ev + 1.5 * qv + self.real * (v + 4 * g) + share * group["weight_decay"] * ew
        return ev, ew + lr * ev + 1.5 * qw + 4 * self.real * lr * (v + g)

    def check(self) -> None:
        for i, (ours, theirs) in enumerate(zip(self.ours_params, self.theirs_params, strict=True)):
            if not ours.numel():
                continue
            info = torch.finfo(ours.dtype)
            seen = theirs.detach().abs() * info.eps / 2 + info.smallest_normal * info.eps
            far = (ours.detach().double() - theirs.detach()).abs() - seen
            assert far.max() <= self.errors[i][1], f"step {self.steps}, parameter {i}: beyond the bound {self.errors[i][1]:.3g}"

    def run(self, steps: int = 30, skip: Sequence[int] = ()) -> None:
        for _ in range(steps):
            self.step(skip)


SETTINGS = {
    "plain": {},
    "dampening": {"dampening": 0.3},
    "dampening-1": {"dampening": 1.0},
    "dampening-negative": {"dampening": -0.5},
    "weight-decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "maximize-decay-dampening": {"maximize": True, "weight_decay": 0.1, "dampening": 0.3},
    "momentum-1": {"momentum": 1.0},
    "momentum-small": {"momentum": 0.01},
    "lr-0": {"lr": 0.0},
}


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_same_trajectory_as_torch(settings: dict[str, Any], state_bits: int) -> None:
    Twins((33,), (5, 4), (), state_bits=state_bits, **{"lr": 0.1, "momentum": 0.9, **settings}).run()


def test_the_bound_is_tight_enough_to_see_a_dampened_first_step() -> None:
    """Guards the tests above: the bound must be far below the effect of any setting, which is some 1e-2."""
    for state_bits, far in ((64, 1e-9), (32, 1e-4)):
        twins = Twins((33,), lr=0.1, momentum=0.9, dampening=0.3, state_bits=state_bits)
        twins.run(30)
        assert twins.errors[0][1] < far


def test_defaults_are_torchs_but_for_momentum() -> None:
    ours, theirs = rh.ReversibleSGD(random_parameters((2,))), torch.optim.SGD(random_parameters((2,)))
    for name in ("lr", "dampening", "weight_decay", "nesterov", "maximize"):
        assert ours.defaults[name] == theirs.defaults[name], name
    assert ours.defaults["momentum"] == 0.9


@pytest.mark.parametrize("state_bits", [64, 32])
def test_groups_with_different_settings(state_bits: int) -> None:
    twins = Twins((9,), (3, 3), state_bits=state_bits, lr=0.1, momentum=0.9)
    twins.add_group((17,), lr=0.01, momentum=0.5, weight_decay=0.2, dampening=0.1)
    twins.add_group((4,), lr=0.3, momentum=0.75, maximize=True)
    twins.run()


def test_group_added_in_the_middle_starts_undampened() -> None:
    twins = Twins((9,), lr=0.1, momentum=0.9, dampening=0.5)
    twins.run(10)
    twins.add_group((17,), (2,), lr=0.2, momentum=0.5, dampening=0.5)
    twins.run(10)


def test_parameter_without_gradient_keeps_weight_and_velocity() -> None:
    twins = Twins((9,), (3,), lr=0.1, momentum=0.9, weight_decay=0.1, dampening=0.5)
    twins.run(5, skip=[1])  # the second has its first, undampened step later
    twins.run(5)
    twins.run(5, skip=[0])
    twins.run(3, skip=[0, 1])
    twins.run(5)


@pytest.mark.parametrize("state_bits", [64, 32])
def test_settings_changed_at_every_step(state_bits: int) -> None:
    twins = Twins((9,), (3,), state_bits=state_bits, lr=0.1, momentum=0.9)
    for step in range(40):
        twins.set(lr=0.2 / (1 + step), momentum=[0.5, 0.9, 0.75, 0.99][step % 4], dampening=0.1 * (step % 3))
        twins.set(weight_decay=0.05 * (step % 2), maximize=step % 5 == 0)
        twins.step()


def test_closure_returns_the_loss_and_runs_with_gradients_enabled() -> None:
    (weight,) = random_parameters((3,))
    optimizer = rh.ReversibleSGD([weight], lr=0.1)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        expected = weight.square().sum().item()
        assert optimizer.step(closure).item() == expected
        assert optimizer.step_back(closure).item() == expected
    assert optimizer.step() is None
