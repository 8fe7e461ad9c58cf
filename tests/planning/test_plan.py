"""The planner: what it predicts against what is measured, what it picks, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import peak
import pytest
import torch

import reversible_hypergrad as rh
from reversible_hypergrad.adjoints.cost import RunSize

PEAK = Path(__file__).with_name("peak.py")
WEIGHTS = sum(p.numel() for p in peak.model().parameters())
STEPS = 30

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc/self/status"
)


def measured(adjoint, *numbers):
    command = [sys.executable, str(PEAK), adjoint, *map(str, numbers)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=PEAK.parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def size(steps=STEPS, **changed):
    settings = {"factors": [(WEIGHTS, [0.9])], "hyperparameters": peak.HYPERPARAMETERS, **changed}
    return RunSize(weights=WEIGHTS, steps=steps, **settings)


@needs_proc
@pytest.mark.parametrize(
    "adjoint",
    [
        "rh.Snapshots()",
        "rh.Checkpoint()",
        "rh.RecursiveCheckpoint()",
        "rh.RecursiveCheckpoint(slots=3)",
        "rh.Reversible()",
        "rh.Reversible(state_bits=32)",
        "rh.Reversible(segments='auto')",
        "rh.ForwardMode()",
    ],
)
def test_predicted_memory_is_what_is_measured(adjoint):
    predicted = eval(adjoint, {"rh": rh}).cost(size()).bytes
    assert measured(adjoint, STEPS, 0.9)["bytes"] == pytest.approx(predicted, rel=0.15)


GRADIENTS = {
    "clipped": (["rh.clip_norm(1.0)", 1], {"gradient_vectors": 3}),
    "in micro-batches": (["None", 2], {"gradient_vectors": 2, "gradient_passes": 1.0}),
    "both": (["rh.clip_value(1e-3)", 2], {"gradient_vectors": 5, "gradient_passes": 1.0}),
}


@needs_proc
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_predicted_memory_of_what_is_done_to_gradients(gradient):
    """Of reversal, which holds least else: each is outside what would be predicted without it."""
    arguments, changed = GRADIENTS[gradient]
    predicted = rh.Reversible().cost(size(**changed)).bytes
    found = measured("rh.Reversible()", STEPS, 0.9, None, *arguments)["bytes"]
    assert found == pytest.approx(predicted, rel=0.15)


def test_what_is_done_to_gradients_enters_the_plan():
    plain, clipped, cut = (
        rh.plan(10**6, 100, 0.9, "1 TB", **more) for more in ({}, {"clip": rh.clip_norm(1.0)}, {"accumulate": 4})
    )
    for row in plain.rows:
        own = [next(r for r in plan.rows if repr(r.adjoint) == repr(row.adjoint)) for plan in (clipped, cut)]
        assert [r.cost.bytes - row.cost.bytes for r in own] == [3 * 4e6, 2 * 4e6]
        assert [r.cost.time - row.cost.time for r in own] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("kind", ["accumulate", "batches", "clip"])
def test_auto_knows_what_is_done_to_gradients(kind):
    """A budget that is just enough without it is too small; and looking at a batch leaves random numbers as they are."""
    net, steps = torch.nn.Linear(1000, 100), 3

    def batches(step):
        batch = torch.rand(4, 1000)
        return rh.MicroBatches([batch[:2], batch[2:]]) if kind == "batches" else batch

    def run(budget):
        more = {"accumulate": {"accumulate": 2}, "batches": {}, "clip": {"clip": rh.clip_norm(1.0)}}[kind]
        return rh.train(
            net,
            lambda model, batch, _: model(batch).square().mean(),
            batches,
            steps=steps,
            optimizer=rh.SGD(lr=0.01, momentum=0.9),
            adjoint="auto",
            budget=budget,
            **more,
        )

    plan = rh.plan(net, steps, 0.9, "1 GB", hyperparameters=0)
    enough = 1.06 * min(row.cost.bytes for row in plan.rows if not isinstance(row.adjoint, rh.ForwardMode))
    with pytest.raises(MemoryError, match="no exact strategy fits"):
        run(enough)
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    assert run("1 GB").report.steps == steps
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_million_steps_take_no_memory_of_their_own():
    """As lists of Python numbers they took 130 MB."""
    tracemalloc.start()
    try:
        plan = rh.plan(85_002, 10**6, 0.9, "20 GB")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10e6
    assert repr(plan.adjoint).endswith("segments=1)")


def test_one_momentum_for_all_steps_is_planned_as_one_for_each():
    for row, other in zip(
        rh.plan(85_002, 10**4, 0.9, "1 GB").rows, rh.plan(85_002, 10**4, [0.9] * 10**4, "1 GB").rows, strict=True
    ):
        assert repr(row.adjoint) == repr(other.adjoint)
        assert row.cost.bytes == pytest.approx(other.cost.bytes, rel=1e-6)


# Momentum 0.1 destroys 3.3 bits per weight and step: 62 bytes per weight at T = 150, more than segments and their states take.
CASES = {
    "snapshots fit": (30, 0.9, "Snapshots(store='device')"),
    "only reversal": (30, 0.9, "segments=1)"),
    "only segments": (150, 0.1, "segments='auto')"),
}


@needs_proc
@pytest.mark.parametrize("case", CASES)
def test_auto_picks_right_and_stays_within_the_budget(case):
    """The budget is what the expected strategy is predicted to take, and the margin that the planner leaves to allocators."""
    steps, momentum, expected = CASES[case]
    rows = rh.plan(peak.model(), steps, momentum, "1 TB", hyperparameters=peak.HYPERPARAMETERS).rows
    budget = 1.051 * next(row.cost.bytes for row in rows if repr(row.adjoint).endswith(expected))
    result = measured("auto", steps, momentum, budget)
    assert result["adjoint"].endswith(expected)
    assert result["restored"]
    assert result["bytes"] <= budget


def test_the_table_marks_the_fastest_that_fits():
    plan = rh.plan(1_000_000, 1000, 0.9, "100 MB")
    chosen = next(line for line in str(plan).splitlines() if "<-" in line)
    assert chosen.startswith(repr(plan.adjoint))
    fitting = [row for row in plan.rows if row.fits]
    assert plan.adjoint is min(fitting, key=lambda row: row.cost.time).adjoint
    assert all(1.05 * row.cost.bytes <= 100e6 for row in fitting)
    assert "too large" in str(plan)


def test_momentum_zero_and_nesterov_leave_reversal_out():
    for plan in (rh.plan(1000, 100, 0.0, "1 GB"), rh.plan(1000, 100, 0.9, "1 GB", nesterov=True)):
        rows = [row for row in plan.rows if isinstance(row.adjoint, rh.Reversible)]
        assert rows
        assert all(row.cost.obstacle and not row.fits for row in rows)
        assert isinstance(plan.adjoint, rh.Snapshots)
        assert "cannot be undone" in str(plan)


def test_momentum_schedules_count_step_by_step():
    low, high = (rh.plan(10**6, 1000, m, "1 TB") for m in (0.5, 0.99))
    mixed = rh.plan(10**6, 1000, [0.5] * 500 + [0.99] * 500, "1 TB")

    def bits(plan):
        return next(row.cost.bytes for row in plan.rows if repr(row.adjoint).endswith("segments=1)"))

    assert bits(mixed) == pytest.approx((bits(low) + bits(high)) / 2)


def test_learned_rates_keep_velocities():
    plain, learned = (rh.plan(10**6, 100, 0.9, "1 TB", learn_rates=x) for x in (False, True))
    found = [next(r.cost.bytes for r in p.rows if isinstance(r.adjoint, rh.Snapshots)) for p in (plain, learned)]
    assert found[1] - found[0] == 99 * 4e6


def test_forward_mode_is_offered_for_few_hyperparameters_only():
    few = rh.plan(1000, 10**5, 0.9, "1 GB", hyperparameters=2)
    assert any(isinstance(row.adjoint, rh.ForwardMode) and row.fits for row in few.rows)
    many = rh.plan(1000, 10**5, 0.9, "1 GB", hyperparameters=1000)
    assert "1,000 hyperparameters" in str(many)
    assert not any(isinstance(r.adjoint, rh.ForwardMode) for r in rh.plan(1000, 100, 0.9, "1 GB").rows)


def test_a_budget_that_nothing_fits_names_what_needs_least():
    plan = rh.plan(10**6, 1000, 0.9, "1 MB")
    with pytest.raises(MemoryError, match=r"budget: no exact strategy fits 1.00MB; .* needs least, .*disk"):
        _ = plan.adjoint
    assert "<-" not in str(plan)


def test_without_a_budget_what_is_free_counts():
    plan = rh.plan(1000, 10, 0.9)
    assert plan.budget > 10**8
    assert isinstance(plan.adjoint, rh.Snapshots)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 10), ValueError, "model_or_weight_count: .*got 0"),
        (("x", 10), TypeError, "model_or_weight_count: .*got 'x'"),
        ((torch.nn.Tanh(), 10), ValueError, "model_or_weight_count: .*got none"),
        ((10, 0), ValueError, "steps: .*got 0"),
        ((10, 2.5), TypeError, "steps: .*got 2.5"),
        ((10, 10, [0.9] * 3), ValueError, "momentum: expected 1 number or 10"),
        ((10, 10, 1.5), ValueError, r"momentum: expected numbers in \[0, 1\]"),
        ((10, 10, 0.9, "many"), ValueError, "budget: .*'many'"),
        ((10, 10, 0.9, -5), ValueError, "budget: .*-5"),
        ((10, 10, 0.9, True), TypeError, "budget: .*True"),
        ((10, 2, [0.9, float("nan")]), ValueError, r"momentum: expected numbers in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        rh.plan(*arguments)


@pytest.mark.parametrize(("text", "amount"), [("500 MB", 5e8), ("2GiB", 2**31), ("1.5k", 1500), (7, 7), ("3e2 kB", 3e5)])
def test_budgets_as_text(text, amount):
    assert rh.plan(10, 10, 0.9, text).budget == amount


def test_train_refuses_a_budget_without_auto_and_other_words():
    arguments = {"steps": 2, "optimizer": rh.SGD(lr=0.1)}
    net, batch = torch.nn.Linear(2, 1), torch.ones(1, 2)
    for changed, error, message in (
        ({"budget": "1 GB"}, ValueError, "budget: .*unless adjoint='auto'"),
        ({"adjoint": "fast"}, TypeError, "adjoint: .*got 'fast'"),
        ({"adjoint": "auto", "budget": "10"}, MemoryError, "no exact strategy fits"),
    ):
        with pytest.raises(error, match=message):
            rh.train(net, lambda model, batch, _: model(batch).sum(), lambda step: batch, **arguments, **changed)


def test_auto_gives_every_gradient_that_reversal_gives():
    """Forward mode would be as fast for one hyperparameter, but without gradients by the model's weights."""
    net, batch = torch.nn.Linear(2, 1), torch.ones(1, 2)
    scale = torch.zeros((), requires_grad=True)
    trained = rh.train(
        net,
        lambda model, batch, scale: (model(batch) - scale.exp()).square().sum(),
        lambda step: batch,
        steps=5,
        optimizer=rh.SGD(lr=0.1),
        hyperparameters=scale,
        adjoint="auto",
        budget="1 GB",
    )
    sum(w.sum() for w in trained.values()).backward()
    assert trained.report.adjoint == "Snapshots(store='device')"
    assert all(g is not None for g in (net.weight.grad, net.bias.grad, scale.grad))
