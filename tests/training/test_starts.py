"""Runs that continue others: their bits, what flows through both, and starts written by hand."""

from __future__ import annotations

import pytest
import torch
from models import batch_indices
from runs import MODELS, STRATEGIES, Run, error, same

import reversible_hypergrad as rh

# Between two parts the gradient by the weights is rounded to their dtype, and products enter it one by one; elsewhere nothing is
# computed otherwise. A dozen roundings of float64, or of float32.
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Lion"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bits_of_an_unbroken_run(strategy, rule, dtype):
    one, other = Run(rule, dtype=dtype), Run(rule, dtype=dtype)
    unbroken, parts = one.train(STRATEGIES[strategy]), other.in_parts(STRATEGIES[strategy], 4)
    assert same(unbroken.values(), parts.values())
    found, expected = other.gradients(other.value(parts)), one.gradients(one.value(unbroken))
    assert error(found, expected) < ROUNDING[dtype]
    assert parts.report.restored


@pytest.mark.parametrize("name", MODELS[1:])
@pytest.mark.parametrize("strategy", ["reversible", "checkpoint"])
def test_random_numbers_and_buffers_go_on(strategy, name):
    one, other = Run("AdamW", name), Run("AdamW", name)
    unbroken, parts = one.train(STRATEGIES[strategy]), other.in_parts(STRATEGIES[strategy], 3)
    assert same(unbroken.values(), parts.values())
    assert same(unbroken.buffers.values(), parts.buffers.values())
    assert error(other.gradients(other.value(parts)), one.gradients(one.value(unbroken))) < ROUNDING[torch.float64]


def test_continued_ten_times():
    one, other = Run("AdamW", steps=50), Run("AdamW", steps=50)
    unbroken, parts = one.train(), other.in_parts(None, 10)
    assert same(unbroken.values(), parts.values())
    assert error(other.gradients(other.value(parts)), one.gradients(one.value(unbroken))) < ROUNDING[torch.float64]


def test_a_schedule_of_the_part_or_of_all_steps():
    one, other = Run(), Run()
    assert same(one.in_parts(None, 3, True).values(), other.in_parts(None, 3, False).values())


def test_16_bit_weights():
    """The integers hold more than the weights do."""
    one, other = Run("AdamW", dtype=torch.bfloat16), Run("AdamW", dtype=torch.bfloat16)
    assert same(one.train().values(), other.in_parts(None, 4).values())


def test_an_initial_state_with_a_gradient():
    """Against central differences of train() itself."""

    def value(at, wanted=False):
        run = Run()
        velocity = torch.full((8, 6), at, dtype=torch.float64, requires_grad=wanted)
        trained = run.train(start=rh.Start(states={"0.weight": {"v": velocity}}))
        return run.value(trained), velocity

    found, velocity = value(0.3, wanted=True)
    found.backward()
    slope = (value(0.3 + 1e-5)[0] - value(0.3 - 1e-5)[0]) / 2e-5
    assert float(velocity.grad.sum()) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "forward mode"])
def test_initial_states_alike_under_every_strategy(strategy):
    adjoint = {**STRATEGIES, "forward mode": rh.ForwardMode(force=True)}[strategy]
    found = []
    for one in (adjoint, rh.Unroll()):
        run = Run("AdamW")
        states = {"m": torch.full((3,), 0.02, dtype=torch.float64), "s": torch.full((3,), 0.001, dtype=torch.float64)}
        states = {name: z.requires_grad_() for name, z in states.items()}
        trained = run.train(one, start=rh.Start(states={"4.bias": states}, step=5), lr=0.05)
        found.append(torch.autograd.grad(run.value(trained), list(states.values())))
    assert error(*found) < 1e-9


def test_states_after_training_can_be_looked_at():
    """The momentum at the end, learned through: one more step by hand is one more step of the run."""
    run = Run(steps=8)
    lr = run.lr.detach()[0, 0].requires_grad_()
    short = run.train(steps=7, lr=lr)
    velocity = short.state.states["4.bias"]["v"]
    found = torch.autograd.grad((short["4.bias"] - 0.5 * velocity).square().sum(), lr)[0]
    differences = []
    for sign in (1, -1):
        trained = run.train(steps=7, lr=lr.detach() + sign * 1e-5)
        differences.append((trained["4.bias"] - 0.5 * trained.state.states["4.bias"]["v"]).square().sum())
    assert float(found) == pytest.approx(float(differences[0] - differences[1]) / 2e-5, rel=1e-6)


def test_an_edited_start_is_another_one():
    run = Run()
    state = run.train(steps=6, lr=0.1).state
    state.weights["4.bias"].data.add_(1.0)
    expected = run.train(rh.Checkpoint(), steps=6, lr=0.1, start=state)
    found = run.train(steps=6, lr=0.1, start=state)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-11)


def test_a_state_is_asked_for_before_backward():
    run = Run()
    trained = run.train()
    run.value(trained).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"Ask for trained\.state before backward"):
        _ = trained.state


def test_without_gradients():
    run = Run()
    with torch.no_grad():
        trained = run.in_parts(None, 3)
    assert same(trained.values(), run.train().values())


def test_batches_go_on():
    run, seen = Run(), []
    start = run.train(steps=5, lr=0.1).state

    def batches(step):
        seen.append(step)
        return batch_indices(step)

    rh.train(
        run.model,
        run.loss,
        batches,
        steps=3,
        optimizer=rh.SGD(0.1),
        hyperparameters=run.l2.detach(),
        start=start,
        check_derivatives=False,
    )
    assert seen[:3] == [5, 6, 7]
    listed = [batch_indices(step) for step in range(9)]
    trained = rh.train(run.model, run.loss, listed, optimizer=rh.SGD(0.1), hyperparameters=run.l2, start=start)
    assert trained.report.steps == 4
    with pytest.raises(ValueError, match=r"steps: expected at most 4, the number of batches after the 5 .* taken, got 5"):
        rh.train(run.model, run.loss, listed, steps=5, optimizer=rh.SGD(0.1), hyperparameters=run.l2, start=start)


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda run: {"start": run.weights}, TypeError, "start: expected trained.state of another run, or an rh.Start, got dict"),
        (lambda run: {"start": rh.Start(step=-1)}, ValueError, "start: step: expected an integer >= 0, got -1"),
        (
            lambda run: {"start": rh.Start(weights=run.weights), "initial": run.weights},
            ValueError,
            "initial: expected none beside",
        ),
        (lambda run: {"start": rh.Start(weights={"nine": run.l2})}, ValueError, "start: weights: 'nine' is not a trained"),
        (lambda run: {"start": rh.Start(states={"nine": {}})}, ValueError, "start: states: 'nine' is not a trained parameter"),
        (
            lambda run: {"start": rh.Start(states={"4.bias": {"m": torch.zeros(3)}})},
            ValueError,
            r"start: states\['4.bias'\]\['m'\]: expected states of SGD, v",
        ),
        (
            lambda run: {"start": rh.Start(states={"4.bias": {"v": torch.zeros(4)}})},
            ValueError,
            r"start: states\['4.bias'\]\['v'\]: expected shape \(3,\), floating point",
        ),
        (
            lambda run: {"start": rh.Start(states={"4.bias": {"v": torch.full((3,), torch.inf)}})},
            ValueError,
            r"start: states\['4.bias'\]\['v'\]: expected finite numbers, got inf",
        ),
        (lambda run: {"start": rh.Start(buffers={"x": torch.zeros(1)})}, ValueError, r"start: buffers\['x'\]: expected a buffer"),
        (
            lambda run: {"start": rh.Start(step=20), "lr": torch.full((7,), 0.1)},
            ValueError,
            r"lr: expected a tensor of shape \(\) or \(12,\) or \(32,\), one per step \(from step 0 on: .* begins at step 20\)",
        ),
    ],
)
def test_bad_starts(make, error_type, message):
    run = Run()
    before = [w.detach().clone() for w in run.weights.values()]
    with pytest.raises(error_type, match=message):
        run.train(**make(run))
    assert same(before, run.weights.values())


def test_squares_are_not_negative():
    run = Run("AdamW")
    states = {"m": torch.zeros(3, dtype=torch.float64), "s": torch.full((3,), -1.0, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"start: states\['4.bias'\]\['s'\]: expected means of squares, >= 0, got -1"):
        run.train(start=rh.Start(states={"4.bias": states}))
