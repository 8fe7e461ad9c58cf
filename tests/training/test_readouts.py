"""Weights on the way, averages and losses: their values by their definition, their gradients by differences and by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import MODELS, STEPS, STRATEGIES, Run, error, same

import reversible_hypergrad as rh

ALL = {**STRATEGIES, "forward mode": rh.ForwardMode(force=True, chunk=64), "truncated": rh.Truncated(STEPS)}


def curve(run, steps=(0, 3, 12)):
    def loss(model, batch, hyperparameters):
        return hyperparameters.exp() * F.cross_entropy(model(run.x), run.y)

    return rh.LossAt(loss, None, steps)


def all_readouts(run, decay):
    return {
        "ema": rh.ExponentialAverage(decay),
        "swa": rh.UniformAverage(first=3, every=2),
        "at": rh.WeightsAt([0, 5, 12]),
        "curve": curve(run),
    }


def downstream(run, trained):
    """A loss of everything, each part with another weight."""
    total = run.value(trained)
    for k, average in enumerate([trained.readouts["ema"], trained.readouts["swa"], *trained.readouts["at"]]):
        total = total + (k + 1) * run.value(average)
    return total + (trained.readouts["curve"] * torch.tensor([1.0, -2.0, 3.0], dtype=total.dtype)).sum()


def found_by(adjoint, rule, name="mlp", dtype=torch.float64):
    run = Run(rule, name, dtype)
    decay = torch.tensor(0.7, dtype=dtype, requires_grad=True)
    trained = run.train(adjoint, readouts=all_readouts(run, decay))
    leaves = [run.lr, run.l2, decay, *run.weights.values()]
    found = torch.autograd.grad(downstream(run, trained), leaves, allow_unused=True)
    return trained, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Lion"])
@pytest.mark.parametrize("strategy", [name for name in ALL if name != "unroll"])
def test_gradients_against_autograd(strategy, rule):
    """The unroll's readouts are sums that autograd sees. Forward mode gives none by the model's own weights."""
    _, expected = found_by(rh.Unroll(), rule)
    trained, found = found_by(ALL[strategy], rule)
    wanted = slice(0, 3 if strategy == "forward mode" else None)
    assert error(found[wanted], expected[wanted]) < (1e-9 if "reversible" in strategy else 1e-12)
    assert trained.report.restored


@pytest.mark.parametrize("name", MODELS[1:])
def test_models(name):
    _, expected = found_by(rh.Snapshots(), "SGD", name)
    assert error(found_by(rh.Reversible(), "SGD", name)[1], expected) < 1e-9


def test_gradients_by_differences():
    """Of train() itself, along one direction of learning rates, penalty and decay."""

    def value(shift, wanted=False):
        run = Run()
        decay = torch.tensor(0.7 + shift, dtype=torch.float64, requires_grad=wanted)
        with torch.no_grad():
            run.lr += shift * torch.linspace(-1, 1, STEPS, dtype=torch.float64).reshape(-1, 1)
            run.l2 += shift
        return downstream(run, run.train(readouts=all_readouts(run, decay))), run, decay

    total, run, decay = value(0.0, wanted=True)
    by_lr, by_l2, by_decay = torch.autograd.grad(total, [run.lr, run.l2, decay])
    slope = (by_lr.flatten() * torch.linspace(-1, 1, STEPS, dtype=torch.float64)).sum() + by_l2 + by_decay
    difference = (value(1e-5)[0] - value(-1e-5)[0]) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)


def test_values():
    """By the recursion, and by the weights of runs that end earlier."""
    run = Run()
    decays = torch.linspace(0.5, 0.9, STEPS, dtype=torch.float64)
    trained = run.train(readouts={**all_readouts(run, decays), "all": rh.WeightsAt(range(STEPS + 1))})
    weights = trained.readouts["all"]
    for taken, own in enumerate(weights):
        assert same(own.values(), run.train(steps=taken, lr=run.lr[:taken]).values())
    for name in trained:
        average = weights[0][name]
        for own, decay in zip(weights[1:], decays, strict=True):
            average = decay * average + (1 - decay) * own[name]
        torch.testing.assert_close(trained.readouts["ema"][name], average, rtol=0, atol=1e-14)
        mean = torch.stack([own[name] for own in weights[3::2]]).mean(0)
        torch.testing.assert_close(trained.readouts["swa"][name], mean, rtol=0, atol=1e-14)
    for k, taken in enumerate([0, 3, 12]):
        expected = run.l2.exp() * F.cross_entropy(torch.func.functional_call(run.model, weights[taken], run.x), run.y)
        assert float(trained.readouts["curve"][k]) == pytest.approx(float(expected), rel=1e-12)


def test_a_run_is_the_same_with_readouts():
    run = Run("AdamW", "transformer with dropout", torch.float32)
    batch_norm = Run("AdamW", "convolution and batch norm", torch.float32)
    for one in (run, batch_norm):
        trained, plain = one.train(readouts=all_readouts(one, 0.9)), one.train()
        assert same(trained.values(), plain.values())
        assert same(trained.buffers.values(), plain.buffers.values())


@pytest.mark.parametrize("evaluates", [False, True])
def test_losses_along_an_unroll_of_batch_norm(evaluates):
    """Its graph holds the buffers, so that putting them back after a loss must not write to them."""
    found = []
    for adjoint in (rh.Unroll(), rh.Snapshots()):
        run = Run("SGD", "convolution and batch norm")
        run.model.train(not evaluates)
        data = run.x, run.y
        curve = rh.LossAt(lambda model, batch, h: F.cross_entropy(model(batch[0]), batch[1]), data, [0, 3, 12])
        trained = run.train(adjoint, readouts={"curve": curve})
        found.append(run.gradients(trained.readouts["curve"].sum() + run.value(trained)))
    assert error(*found) < 1e-12  # a few steps of rounding


def test_16_bit_weights_are_averaged_in_32():
    run = Run(dtype=torch.bfloat16)
    trained = run.train(readouts={"mean": rh.UniformAverage(), "all": rh.WeightsAt(range(STEPS + 1))})
    for name, mean in trained.readouts["mean"].items():
        exact = torch.stack([own[name].float() for own in trained.readouts["all"]]).mean(0)
        assert mean.dtype == torch.bfloat16
        torch.testing.assert_close(mean, exact.bfloat16(), rtol=2**-7, atol=0)  # one rounding may go the other way


def test_a_continued_run_counts_on():
    run = Run()
    start = run.train(steps=6, lr=0.1).state
    trained = run.train(steps=6, lr=0.1, start=start, readouts={"at": rh.WeightsAt([6, 9]), "mean": rh.UniformAverage(10)})
    assert same(trained.readouts["at"][0].values(), start.weights.values())
    with pytest.raises(ValueError, match="readouts: WeightsAt: expected numbers of steps taken from 6 to 12, got 5"):
        run.train(steps=6, lr=0.1, start=start, readouts={"at": rh.WeightsAt([5])})


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda: rh.ExponentialAverage("a"), TypeError, "decay: expected a number or a tensor, got str"),
        (lambda: rh.ExponentialAverage(torch.tensor(1)), TypeError, "decay: expected a floating-point tensor"),
        (lambda: rh.ExponentialAverage(1.5), ValueError, r"decay: expected numbers in \[0, 1\], got 1.5 to 1.5"),
        (lambda: rh.UniformAverage(every=0), ValueError, "every: expected an integer >= 1, got 0"),
        (lambda: rh.LossAt(3, None, [1]), TypeError, "loss: expected a function"),
        (lambda: Run().train(readouts=[rh.WeightsAt([1])]), TypeError, "readouts: expected a dict"),
        (lambda: Run().train(readouts={"a": 0.9}), TypeError, r"readouts\['a'\]: expected a readout .* got float"),
        (lambda: Run().train(readouts={"a": rh.WeightsAt([13])}), ValueError, "WeightsAt: expected numbers .* to 12, got 13"),
        (lambda: Run().train(readouts={"a": rh.WeightsAt([2, 1])}), ValueError, r"WeightsAt: expected ascending .* got \[2, 1\]"),
        (lambda: Run().train(readouts={"a": rh.UniformAverage(13)}), ValueError, "UniformAverage expected to begin .* first=13"),
        (
            lambda: Run().train(readouts={"a": rh.ExponentialAverage(torch.full((3,), 0.5))}),
            ValueError,
            r"ExponentialAverage expected a decay of shape \(\) or \(12,\), one per step, got \(3,\)",
        ),
        (
            lambda: Run().train(readouts={"a": rh.LossAt(lambda model, batch, h: torch.zeros(2), None, [1])}),
            TypeError,
            "readouts: expected a loss that returns a scalar tensor",
        ),
        (lambda: Run().train(rh.Neumann(2), readouts={"a": rh.WeightsAt([1])}), ValueError, "readouts: an implicit gradient"),
    ],
)
def test_bad_readouts(make, error_type, message):
    with pytest.raises(error_type, match=message):
        make()
