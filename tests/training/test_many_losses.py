"""Gradients of many losses in one walk back: the bits that each has alone."""

from __future__ import annotations

import pytest
import torch
from runs import MODELS, STRATEGIES, Run, same

import reversible_hypergrad as rh

FORWARD = rh.ForwardMode(force=True, chunk=64)
ALL = {**STRATEGIES, "forward mode": FORWARD, "truncated": rh.Truncated(5, rh.Reversible())}


def losses_of(run, trained):
    """Of some of what comes out of a run; the last one does not see the average."""
    average = trained.readouts["average"]
    others = [run.l2 * (w * (k + 1)).sum() + run.value(average) for k, w in enumerate(list(trained.values())[:2])]
    return [*others, run.value(trained)]


def trained_by(adjoint, rule, name):
    run = Run(rule, name, torch.float32)
    return run, run.train(adjoint, readouts={"average": rh.ExponentialAverage(0.9)})


def flat(found):
    return [found["lr"], found["l2"], *found["weights"].values()]


@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Lion"])
@pytest.mark.parametrize("strategy", ALL)
def test_the_bits_of_a_walk_of_its_own(strategy, rule):
    run, trained = trained_by(ALL[strategy], rule, "mlp")
    leaves = {"lr": run.lr, "l2": run.l2, "weights": {} if ALL[strategy] is FORWARD else run.weights}
    many = rh.hypergradients(losses_of(run, trained), leaves)
    assert len(many) == 3
    for q, found in enumerate(many):
        run, trained = trained_by(ALL[strategy], rule, "mlp")
        expected = run.gradients(losses_of(run, trained)[q])
        assert same(flat(found), expected[: len(flat(found))])
    assert all(p.grad is None for p in run.weights.values())


@pytest.mark.parametrize("name", MODELS[1:])
def test_models(name):
    run, trained = trained_by(rh.Reversible(), "AdamW", name)
    many = rh.hypergradients(losses_of(run, trained), run.leaves)
    run, trained = trained_by(rh.Reversible(), "AdamW", name)
    assert same(flat(many[1]), run.gradients(losses_of(run, trained)[1]))


def test_settings_per_weight():
    """Their derivatives come from the rule's own functions."""

    def found(many):
        run = Run("SGD")
        lr = {name: torch.full_like(p, 0.05).requires_grad_() for name, p in run.weights.items()}
        trained = rh.train(
            run.model, run.loss, lambda step: slice(0, 12), steps=6, optimizer=rh.SGD(lr, 0.8, 0.1), hyperparameters=run.l2
        )
        own = [run.value(trained), trained["0.weight"].sum()]
        leaves = list(lr.values())
        return rh.hypergradients(own, leaves) if many else [torch.autograd.grad(own[1], leaves)]

    assert same(found(True)[1], found(False)[0])


def test_a_loss_per_example():
    run = Run()
    trained = run.train()
    each = torch.func.functional_call(run.model, dict(trained), run.x).square().sum(1)
    many = rh.hypergradients(each, run.lr)
    assert len(many) == len(run.x)
    run = Run()
    trained = run.train()
    each = torch.func.functional_call(run.model, dict(trained), run.x).square().sum(1)
    assert torch.equal(many[7], torch.autograd.grad(each[7], run.lr)[0])


@pytest.mark.parametrize("strategy", ["reversible", "checkpoint", "unroll"])
def test_some_at_a_time(strategy):
    run, trained = trained_by(ALL[strategy], "AdamW", "mlp")
    many = rh.hypergradients(losses_of(run, trained), run.leaves)
    run, trained = trained_by(ALL[strategy], "AdamW", "mlp")
    chunks = rh.hypergradients(losses_of(run, trained), run.leaves, at_a_time=2)
    assert all(same(flat(a), flat(b)) for a, b in zip(many, chunks, strict=True))


def test_through_runs_that_continue():
    def losses(run):
        first = run.train(steps=6, lr=run.lr[:6])
        second = run.train(steps=6, start=first.state)
        return [run.value(second) + run.value(first), run.value(first), run.value(second)]

    run = Run("AdamW")
    many = rh.hypergradients(losses(run), run.leaves)
    for q in range(3):
        run = Run("AdamW")
        assert same(flat(many[q]), run.gradients(losses(run)[q]))


def test_inputs_that_hyperparameters_are_made_of():
    run = Run()
    log = torch.tensor(-2.5, dtype=torch.float64, requires_grad=True)
    trained = run.train(lr=log.exp())
    (found,) = rh.hypergradients([run.value(trained)], log)
    assert torch.equal(found, torch.autograd.grad(run.value(trained), log)[0])  # it trains once more: undone steps are gone


def test_a_strategy_without_gradients_by_the_models_parameters():
    """They would have been zeros."""
    run = Run()
    trained = run.train(FORWARD)
    with pytest.raises(ValueError, match=r"inputs\['weights'\]\['0.weight'\]: .* gives a gradient by.* as initial=, or use"):
        rh.hypergradients([run.value(trained)], {"lr": run.lr, "weights": run.weights})
    (found,) = rh.hypergradients([run.value(trained)], run.lr)
    assert same([found], run.gradients(run.value(trained))[:1])


def test_nothing_depends_on_it():
    run = Run()
    other = torch.ones(2, requires_grad=True)
    (found,) = rh.hypergradients([run.value(run.train())], [other])
    assert torch.equal(found[0], torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda run, t: ([t["4.bias"]], run.lr), TypeError, r"losses\[0\]: expected a scalar tensor, got shape \(3,\)"),
        (lambda run, t: ([1.0], run.lr), TypeError, r"losses\[0\]: expected a scalar tensor, got float"),
        (lambda run, t: ([t["4.bias"].sum().detach()], run.lr), ValueError, r"losses\[0\]: expected a loss of what rh.train"),
        (lambda run, t: ([run.l2 * 2], run.lr), ValueError, "losses: expected losses of what rh.train"),
        (lambda run, t: ([run.value(t)], {"lr": run.lr, "n": 3}), TypeError, r"inputs\['n'\]: expected a tensor, got int"),
        (lambda run, t: ([run.value(t)], run.lr, 0), ValueError, "at_a_time: expected an integer >= 1 or None, got 0"),
        (lambda run, t: ([run.value(t)], [run.x]), ValueError, r"inputs\[0\]: expected a tensor that requires grad"),
    ],
)
def test_bad_arguments(make, error_type, message):
    run = Run()
    trained = run.train()
    with pytest.raises(error_type, match=message):
        rh.hypergradients(*make(run, trained))
    assert torch.isfinite(run.gradients(run.value(trained))[0]).all()  # nothing is lost
