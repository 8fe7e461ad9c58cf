"""Every step can be undone bit for bit, after thousands of steps of real training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import Transformer, convnet, digits_batch, digits_closure, mlp, train_and_rewind
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh

MOMENTA = [0.1, 0.5, 0.9, 0.99, 0.999, 0.8731]
MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet, "transformer": Transformer}


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    """Tiny models: more threads only wait for each other, fifty times as long when other work has the cores."""
    set_num_threads(1)


by_width = pytest.mark.parametrize("state_bits", [64, 32])


def another_momentum_every_step(step: int) -> float:
    return random.Random(step).uniform(0.05, 0.999)


class StackedMLPs(nn.Module):
    """One MLP per momentum, evaluated together: a run of each for the price of one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(mlp(seed, hidden=8) for seed in range(count))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (members, batch, 10)."""
        layers = [[getattr(m[i], name) for m in self.members] for i in (0, 2) for name in ("weight", "bias")]
        w1, b1, w2, b2 = (torch.stack(layer) for layer in layers)
        hidden = torch.tanh(torch.baddbmm(b1.unsqueeze(1), images.expand(len(w1), -1, -1), w1.transpose(1, 2)))
        return torch.baddbmm(b2.unsqueeze(1), hidden, w2.transpose(1, 2))


@pytest.mark.parametrize("steps", [1000, pytest.param(5000, marks=pytest.mark.slow)])
@by_width
def test_mlps_for_every_momentum(state_bits: int, steps: int) -> None:
    """A group per momentum, and one whose momentum, learning rate and decay are others at every step."""
    model = StackedMLPs(len(MOMENTA) + 1)
    groups = [{"params": m.parameters(), "momentum": mu} for m, mu in zip(model.members, [*MOMENTA, 0.7], strict=True)]
    for group in groups:
        group["lr"] = 0.2 * (1 - group["momentum"])
    optimizer = rh.ReversibleSGD(groups, weight_decay=1e-3, state_bits=state_bits)
    first = digits_batch(0)

    def closure_of(step: int) -> Callable[[], Any]:
        images, labels = first if step == 0 else digits_batch(step, 8)

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="sum") / len(labels)
            loss.backward()
            return loss

        return closure

    def prepare(step: int) -> None:
        last = optimizer.param_groups[-1]
        last["momentum"] = another_momentum_every_step(step)
        last["lr"] = 0.05 * (1 - last["momentum"])
        last["weight_decay"] = 1e-4 * (step % 7)

    train_and_rewind(optimizer, closure_of, steps, prepare)


def undo_training(name: str, momentum: float | None, state_bits: int, steps: int, **settings: Any) -> None:
    model = MODELS[name]()
    lr = 0.05 if momentum is None else 0.2 * (1 - momentum)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=lr, momentum=momentum or 0.9, state_bits=state_bits, **settings)

    def prepare(step: int) -> None:
        if momentum is None:
            optimizer.param_groups[0]["momentum"] = another_momentum_every_step(step)

    train_and_rewind(optimizer, lambda step: digits_closure(model, optimizer, step), steps, prepare)


@pytest.mark.parametrize(
    ("name", "momentum", "state_bits"),
    [("convnet", 0.9, 64), ("convnet", None, 32), ("transformer", 0.99, 32), ("transformer", None, 64)],
)
def test_1000_steps_of_networks(name: str, momentum: float | None, state_bits: int) -> None:
    undo_training(name, momentum, state_bits, 1000, weight_decay=1e-3, dampening=0.1)


@pytest.mark.slow
@by_width
def test_100000_steps_of_a_small_model(state_bits: int) -> None:
    """A quadratic, driven by a force that never comes to rest; the momentum changes with every step."""
    weight = nn.Parameter(torch.linspace(-1, 1, 13))
    optimizer = rh.ReversibleSGD([weight], lr=0.01, weight_decay=1e-4, state_bits=state_bits, verify_every=100)

    def closure_of(step: int) -> Callable[[], Any]:
        def closure() -> None:
            weight.grad = weight.detach() * 0.5 + math.sin(0.7 * step)

        return closure

    def prepare(step: int) -> None:
        optimizer.param_groups[0]["momentum"] = another_momentum_every_step(step)

    train_and_rewind(optimizer, closure_of, 100_000, prepare)


@pytest.mark.slow
@by_width
@pytest.mark.parametrize("momentum", [*MOMENTA, None], ids=lambda m: "another-every-step" if m is None else str(m))
@pytest.mark.parametrize("name", MODELS)
def test_5000_steps_of_every_model_and_momentum(name: str, momentum: float | None, state_bits: int) -> None:
    undo_training(name, momentum, state_bits, 5000)
