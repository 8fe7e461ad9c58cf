"""Thousands of steps of ReversibleAdam and ReversibleAdamW, undone bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import pytest
from optim_problems import (
    convnet,
    digits_closure,
    frozen,
    mlp,
    random_parameters,
    scheduled,
    take_steps,
    train_and_rewind,
    undo_digits,
    warm_up_and_cosine,
)
from text_problems import TextTransformer, text_closure
from torch import nn

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])
by_decay = pytest.mark.parametrize("decay", [0.0, 0.01, 0.1])
by_schedule = pytest.mark.parametrize("schedule", ["constant", "cosine"])
by_model = pytest.mark.parametrize("model", [mlp, convnet], ids=["mlp", "convnet"])

STEPS = 5000


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    set_num_threads(1)


@pytest.mark.parametrize("steps", [1000, pytest.param(STEPS, marks=pytest.mark.slow)])
@by_width
def test_other_settings_at_each_step(state_bits: int, steps: int) -> None:
    model = mlp()
    half = [list(model[0].parameters()), list(model[2].parameters())]
    optimizer = rh.ReversibleAdamW([{"params": half[0]}, {"params": half[1], "lr": 1e-4}], state_bits=state_bits)

    def prepare(step: int) -> None:
        first, second = optimizer.param_groups
        first["lr"] = warm_up_and_cosine(step, steps, 3e-3)
        first["betas"] = (0.85 + 0.1 * (step % 2), 0.99 + 0.009 * (step % 3) / 2)
        second["weight_decay"] = 0.1 * (step % 5)

    train_and_rewind(optimizer, lambda step: digits_closure(model, optimizer, step), steps, prepare)


@pytest.mark.slow
@by_width
@by_schedule
@by_decay
@by_model
def test_adamw_on_digits(model: Callable[[], nn.Module], decay: float, schedule: str, state_bits: int) -> None:
    undo_digits(rh.ReversibleAdamW, model(), STEPS, schedule, decay, state_bits)


@pytest.mark.slow
@by_width
@by_model
def test_adam_on_digits(model: Callable[[], nn.Module], state_bits: int) -> None:
    """Its decay is a penalty, part of the gradient."""
    undo_digits(rh.ReversibleAdam, model(), STEPS, "cosine", 0.01, state_bits)


@pytest.mark.slow
@by_width
@by_schedule
@by_decay
def test_adamw_on_text(decay: float, schedule: str, state_bits: int) -> None:
    """A transformer with dropout learns to predict the next character, and each step back meets the loss of its step again."""
    model, losses = TextTransformer(), list[float]()
    optimizer = rh.ReversibleAdamW(model.parameters(), lr=3e-3, weight_decay=decay, state_bits=state_bits)
    prepare = scheduled(optimizer, schedule, STEPS)
    train_and_rewind(optimizer, lambda step: text_closure(model, optimizer, step, losses), STEPS, prepare)
    assert losses[STEPS:] == losses[STEPS - 1 :: -1]
    first, last = mean(losses[:20]), mean(losses[STEPS - 200 : STEPS])
    print(f"nats per character: {first:.3f} in the first 20 steps, {last:.3f} in the last 200")
    assert last < 0.75 * first


@pytest.mark.slow
@by_width
def test_100000_steps(state_bits: int) -> None:
    parameters = random_parameters((40,), (3, 5))
    optimizer = rh.ReversibleAdamW(parameters, lr=1e-3, weight_decay=0.1, state_bits=state_bits)
    start = frozen(optimizer)["weights"]
    closures = take_steps(optimizer, 100_000, scale=0.1)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer)["weights"] == start
