"""The same problems under every exact strategy: against a float64 unroll, against finite differences, against each other."""

from __future__ import annotations

import functools

import pytest
import torch
from kinds import (
    EVERYTHING,
    KINDS,
    always,
    by_train,
    by_unroll,
    error,
    leaf,
    per_weight,
    slope_by_differences,
    slope_of,
    steps_of,
    with_settings,
)
from models import batch_indices, problem, validation

import reversible_hypergrad as rh

STEPS = 12

REVERSIBLE = {
    "reversible": rh.Reversible(),
    "reversible, 3 segments": rh.Reversible(segments=3),
    "reversible, auto": rh.Reversible(segments="auto"),
}
STATES = {
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "checkpoint every 5": rh.Checkpoint(every=5),
    "tree of 2": rh.RecursiveCheckpoint(),
    "tree of 3": rh.RecursiveCheckpoint(arity=3),
    "3 slots": rh.RecursiveCheckpoint(slots=3),
}
FLOAT = {**STATES, "unroll": rh.Unroll(), "forward mode": rh.ForwardMode(force=True, chunk=64)}
EXACT = {**REVERSIBLE, **FLOAT}

FLOAT_KINDS = {
    "momentum 0": with_settings(lr=steps_of(0.2, 0.1), momentum=0.0, dampening=always(0.2), weight_decay=always(0.01)),
    "momentum 0 in one layer": with_settings(
        lr=always(0.1), momentum=lambda *a: {"0.*": 0.0, "*": always(0.8)(*a)}, dampening=always(0.1)
    ),
    "momentum 0 in some steps": with_settings(
        lr=always(0.1),
        momentum=lambda model, dtype, steps: leaf([0.0, 0.9, 0.8, 0.0] * (steps // 4), dtype),
        dampening=always(0.1),
    ),
    "Nesterov": with_settings(lr=always(0.1), momentum=always(0.8), weight_decay=always(0.01), nesterov=True),
    "Nesterov, all per step": with_settings(
        lr=steps_of(0.1, 0.02), momentum=steps_of(0.5, 0.9), weight_decay=steps_of(0.0, 0.05), nesterov=True
    ),
    "Nesterov, rates and decay per weight": with_settings(lr=per_weight(0.1), weight_decay=per_weight(0.01), nesterov=True),
    "Nesterov, only momentum": with_settings(
        momentum=lambda *a: {"*.weight": always(0.9)(*a), "*.bias": steps_of(0.0, 0.8)(*a)}, nesterov=True
    ),
}

MODELS = [
    "mlp",
    "convolution and batch norm",
    "LSTM",
    "transformer with dropout",
    "tied",
    "frozen",
    "unused parameters",
    "SiLU, Mish, group norm",  # whose gradients have other bits with a graph than without one
]

DTYPES = [torch.float64, torch.float32]

# These keep states or segments elsewhere than others of their kind; where states are kept does not change a bit (below), so
# that every dtype is worth its time with one of each kind only.
ONCE_MORE = (
    "reversible, 3 segments",
    "reversible, auto",
    "checkpoint",
    "checkpoint every 5",
    "tree of 2",
    "tree of 3",
    "3 slots",
)


def marks(strategy, dtype):
    return [pytest.mark.slow] if dtype == torch.float32 and strategy in ONCE_MORE else []


def cases():
    """Every kind under every exact strategy that can do it."""
    for kinds, strategies in ((KINDS, EXACT), (FLOAT_KINDS, FLOAT)):
        for kind in kinds:
            for strategy in strategies:
                for dtype in DTYPES:
                    yield pytest.param(
                        kind, strategy, dtype, marks=marks(strategy, dtype), id=f"{kind}-{strategy}-{str(dtype)[6:]}"
                    )


# In float64, plain floats and the oracle differ by rounding, 1e-16 a step, which training and the way back may amplify a
# thousand times. Fixed point rounds velocities to 7e-15 times the momentum's denominator; some gradients are 1e-3.
# In float32, rounding is 6e-8 a step, and the oracle's float64 run has other weights from the first step on.
TOLERANCES = {torch.float64: {"float": 1e-11, "fixed": 1e-9}, torch.float32: {"float": 1e-5, "fixed": 1e-5}}


def errors(name, make, strategy, dtype, steps):
    """Relative, of every gradient. Forward mode has none by the model's own weights, unless they are given."""
    found = by_train(name, make, dtype, EXACT[strategy], steps)
    expected = by_unroll(name, make, steps)
    both = (found.of_leaves, expected.of_leaves) if strategy == "forward mode" else (found.grads, expected.grads)
    assert found.trained.report.exact
    return found, max(error(f, e) for f, e in zip(*both, strict=True))


@functools.cache
def slope(kind):
    return slope_by_differences("mlp", {**KINDS, **FLOAT_KINDS}[kind], STEPS, rh.Snapshots())


@pytest.mark.parametrize(("kind", "strategy", "dtype"), list(cases()))
def test_every_kind_of_hyperparameter(kind, strategy, dtype):
    found, worst = errors("mlp", {**KINDS, **FLOAT_KINDS}[kind], strategy, dtype, STEPS)
    assert worst < TOLERANCES[dtype]["fixed" if strategy in REVERSIBLE else "float"]
    if dtype == torch.float64:
        # Central differences of width 1e-5: third derivatives times 1e-10, and rounding over the width, 1e-11.
        assert slope_of(found) == pytest.approx(slope(kind), rel=1e-7)


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [
        pytest.param(strategy, dtype, marks=marks(strategy, dtype), id=f"{strategy}-{str(dtype)[6:]}")
        for strategy in EXACT
        for dtype in DTYPES
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name, strategy, dtype):
    _, worst = errors(name, EVERYTHING, strategy, dtype, 10)
    assert worst < TOLERANCES[dtype]["fixed" if strategy in REVERSIBLE else "float"]


@pytest.mark.parametrize("name", ["mlp", "SiLU, Mish, group norm", "transformer with dropout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_states_kept_anywhere_give_the_same_bits(name, dtype):
    """Training again between kept states repeats training; only where states are kept differs."""
    results = [by_train(name, EVERYTHING, dtype, adjoint, 13) for adjoint in STATES.values()]
    for other in results[1:]:
        assert all(torch.equal(w, other.trained[n]) for n, w in results[0].trained.items())
        assert all(torch.equal(a, b) for a, b in zip(results[0].grads, other.grads, strict=True))
        assert other.trained.report.steps_again > 0
    assert results[0].trained.report.steps_again == 0


@pytest.mark.parametrize("strategy", FLOAT)
def test_trained_buffers_are_those_of_one_run(strategy):
    name = "convolution and batch norm"
    trained = by_train(name, EVERYTHING, torch.float64, FLOAT[strategy], 5).trained
    model, x, y = problem(name, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings, hyperparameters, _, loss, _ = EVERYTHING(model, x, y, torch.float64, 5)
    for step in range(5):
        for group in optimizer.param_groups:
            momentum = settings["momentum"][step].item()
            group.update(lr=settings["lr"][step].item(), momentum=momentum, dampening=0.1, weight_decay=0.01)
        optimizer.zero_grad()
        loss(model, batch_indices(step), hyperparameters).backward()
        optimizer.step()
    assert int(trained.buffers["1.num_batches_tracked"]) == 5
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(trained.buffers[name], buffer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_leaves_zero(nesterov):
    """The derivative at a momentum of 0, from one side: 3 values give it to third order of the width."""
    model, x, y = problem("mlp", torch.float64)
    width = 1e-4
    values = []
    for momentum in (0.0, width, 2 * width):
        momenta = torch.full((STEPS,), 0.5, dtype=torch.float64)
        momenta[3:5] = momentum
        momenta.requires_grad_()
        settings, hyperparameters, _, loss, _ = KINDS["lr"](model, x, y, torch.float64, STEPS)
        optimizer = rh.SGD(lr=settings["lr"], momentum=momenta, nesterov=nesterov)
        trained = rh.train(
            model, loss, batch_indices, steps=STEPS, optimizer=optimizer, hyperparameters=hyperparameters, adjoint=rh.Checkpoint()
        )
        value = validation(model, trained)
        values.append(value.item())
        if momentum == 0.0:
            (gradient,) = torch.autograd.grad(value, [momenta])
    slope = (-3 * values[0] + 4 * values[1] - values[2]) / (2 * width)
    assert float(gradient[3:5].sum()) == pytest.approx(slope, rel=1e-6)
