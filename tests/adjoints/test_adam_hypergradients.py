"""Hypergradients through Adam and AdamW, every setting, against a float64 unroll written here, and finite differences."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import reversible_hypergrad as rh

RULES = {"Adam": rh.Adam, "AdamW": rh.AdamW}
by_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)


def leaf(values):
    return torch.as_tensor(values, dtype=torch.float64).clone().requires_grad_()


def cosine(steps):
    return torch.tensor([0.02 * min((t + 1) / 10, 0.5 * (1 + math.cos(math.pi * t / steps))) for t in range(steps)]).double()


# What is learned: by parameter and step, as train() takes it.
KINDS = {
    "numbers": lambda model, steps: {
        "lr": leaf(0.01),
        "beta1": leaf(0.9),
        "beta2": leaf(0.99),
        "eps": leaf(1e-6),
        "wd": leaf(0.1),
    },
    "per step": lambda model, steps: {
        "lr": leaf(cosine(steps)),
        "beta1": leaf(torch.linspace(0.8, 0.95, steps).double()),
        "beta2": leaf(torch.linspace(0.99, 0.9, steps).double()),
        "eps": leaf(torch.linspace(1e-6, 1e-4, steps).double()),
        "wd": leaf(torch.linspace(0.0, 0.2, steps).double()),
    },
    "per layer": lambda model, steps: {
        "lr": {"0.*": leaf(0.01), "2.*": leaf(cosine(steps))},
        "beta1": {"0.*": leaf(0.9), "*": 0.7},
        "beta2": {"*.bias": leaf(0.95), "*": leaf(0.99)},
        "eps": {"0.weight": leaf(1e-5), "*": 1e-8},
        "wd": {"*.weight": leaf(0.1), "*": 0.0},
    },
    "rates per weight": lambda model, steps: {
        "lr": {name: leaf(torch.full(p.shape, 0.01)) for name, p in model.named_parameters()},
        "beta1": leaf(0.9),
        "beta2": 0.99,
        "eps": 1e-6,
        "wd": 0.0,
    },
    "eps_root": lambda model, steps: {
        "lr": leaf(0.01),
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": leaf(1e-6),
        "wd": 0.01,
        "eps_root": leaf(1e-9),
    },
}


def leaves_of(given):
    return [t for v in given.values() for t in (v.values() if isinstance(v, dict) else [v]) if isinstance(t, torch.Tensor)]


def problem(dtype=torch.float64, smooth=False):
    """A net on digits, whose border pixels are 0 in many images; batches by step, and a validation loss."""
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=dtype), torch.tensor(data.target)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh() if smooth else nn.ReLU(), nn.Linear(12, 10)).to(dtype)

    def loss(m, step, _):
        rows = torch.randint(1000, (32,), generator=torch.Generator().manual_seed(int(step)))
        return F.cross_entropy(m(images[rows]), labels[rows])

    def validation(weights):
        return F.cross_entropy(torch.func.functional_call(model, weights, images[1000:1200]), labels[1000:1200])

    return SimpleNamespace(model=model, loss=loss, validation=validation, lit=(images[:1000] > 0).any(0))


def by_train(rule, make, steps, adjoint, dtype=torch.float64, smooth=False):
    own = problem(dtype, smooth)
    given = make(own.model, steps)
    optimizer = RULES[rule](
        given["lr"], (given["beta1"], given["beta2"]), given["eps"], given["wd"], eps_root=given.get("eps_root", 0.0)
    )
    trained = rh.train(own.model, own.loss, range(steps), optimizer=optimizer, adjoint=adjoint)
    own.validation(dict(trained)).backward()
    return [t.grad.double() for t in [*leaves_of(given), *own.model.parameters()]], trained.report


def by_unroll(rule, make, steps, smooth=False):
    """torch's formula step by step under autograd in float64; the root of 0 is a constant."""
    own = problem(smooth=smooth)
    given = make(own.model, steps)
    start = {n: p.detach().clone().requires_grad_() for n, p in own.model.named_parameters()}
    w, m, s = dict(start), dict.fromkeys(start, 0.0), dict.fromkeys(start, 0.0)

    def at(setting, name, t):
        value = given.get(setting, 0.0)
        if isinstance(value, dict):
            patterns = [p for p in value if p == name or p.strip("*") in name or p == "*"]
            value = value[patterns[0]]
        return value[t] if isinstance(value, torch.Tensor) and value.shape == (steps,) else value

    for t in range(steps):
        stand_in = lambda x, now=w: torch.func.functional_call(own.model, now, x)  # noqa: E731
        gradients = torch.autograd.grad(own.loss(stand_in, t, None), list(w.values()), create_graph=True)
        new = {}
        for (name, weight), g in zip(w.items(), gradients, strict=True):
            lr, b1, b2, eps, wd = (at(setting, name, t) for setting in ("lr", "beta1", "beta2", "eps", "wd"))
            total = g + wd * weight if rule == "Adam" else g
            m[name] = b1 * m[name] + (1 - b1) * total
            s[name] = b2 * s[name] + (1 - b2) * total * total
            inside = s[name] / (1 - b2 ** (t + 1)) + at("eps_root", name, t)
            positive = inside > 0
            root = torch.where(positive, torch.where(positive, inside, 1.0).sqrt(), 0.0)
            kept = weight * (1 - lr * wd) if rule == "AdamW" else weight
            new[name] = kept - lr * (m[name] / (1 - b1 ** (t + 1))) / (root + eps)
        w = new
    return [g.double() for g in torch.autograd.grad(own.validation(w), [*leaves_of(given), *start.values()])]


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


STRATEGIES = {
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "tree": rh.RecursiveCheckpoint(),
    "unroll": rh.Unroll(),
}
STEPS = 30


@by_rule
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plain_floats(strategy, kind, rule):
    """The same numbers in another order of operations, 30 steps."""
    found, _ = by_train(rule, KINDS[kind], STEPS, STRATEGIES[strategy])
    for f, e in zip(found, by_unroll(rule, KINDS[kind], STEPS), strict=True):
        assert error(f, e) < 1e-10


@by_rule
@pytest.mark.parametrize("kind", ["numbers", "per step"])
def test_forward_mode(kind, rule):
    """By all settings; by the initial weights it is asked for nothing."""
    own = problem()
    given = KINDS[kind](own.model, 13)
    optimizer = RULES[rule](given["lr"], (given["beta1"], given["beta2"]), given["eps"], given["wd"])
    start = {n: p.detach() for n, p in own.model.named_parameters()}
    adjoint = rh.ForwardMode(force=True, chunk=64)
    trained = rh.train(own.model, own.loss, range(13), optimizer=optimizer, initial=start, adjoint=adjoint)
    own.validation(dict(trained)).backward()
    for t, e in zip(leaves_of(given), by_unroll(rule, KINDS[kind], 13), strict=False):
        assert error(t.grad, e) < 1e-10


# An update is a moment by the root of another, so a weight moves by lr whatever the size of its gradients, and feels the rounding
# of squares, at the default beta2 to 2^-53 of what the largest of the first ones adds, as a part of its own: 1e-10 where its
# gradients are 1e-3 of the largest, as those of pixels that are seldom lit. A hundred steps of a net with kinks amplify that a
# thousandfold and more. eps and the initial weights act through such weights most. A float32 model adds its own rounding, 6e-8
# per operation.
PRECISIONS = [
    pytest.param(torch.float64, 64, 1e-6, 1e-5, id="float64-64"),
    pytest.param(torch.float32, 64, 1e-4, 1e-3, id="float32-64"),
    pytest.param(torch.float32, 32, 1e-4, 1e-3, id="float32-32"),
]


@by_rule
@pytest.mark.parametrize(("dtype", "state_bits", "tolerance", "of_eps_and_start"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_reversible(kind, dtype, state_bits, tolerance, of_eps_and_start, rule):
    found, report = by_train(rule, KINDS[kind], 100, rh.Reversible(state_bits=state_bits), dtype)
    names = [name for name, v in KINDS[kind](problem().model, 100).items() for t in leaves_of({name: v})]
    assert report.restored
    for name, f, e in zip([*names, *["start"] * 4], found, by_unroll(rule, KINDS[kind], 100), strict=True):
        assert error(f, e) < (of_eps_and_start if name in ("eps", "eps_root", "start") else tolerance), name


def defaults(rule):
    """For Adam without decay: as a penalty it drives the weights of dark pixels to 0 and back, in steps of the size of lr, whose
    signs depend on everything."""
    decay = {"wd": leaf(0.01)} if rule == "AdamW" else {"wd": 0.0}
    return lambda model, steps: {
        "lr": leaf(0.2 * cosine(steps)),
        "beta1": leaf(0.9),
        "beta2": leaf(0.999),
        "eps": leaf(1e-8),
        **decay,
    }


# What is left after a thousand steps is one rounding. Pixel 16 is first lit at step 74, and a weight of it then gets a gradient
# of 5e-6 of the largest. Its square is q = 1.7e5 quanta, off by 1 / (2 q) of itself at most, and two steps of this weight, of 0.9
# and 0.8 lr, by half as much of themselves: 1e-8 together. From this alone, in the unroll, a rounding by half a quantum would
# follow relative differences of 6e-10 by beta1, 8e-11 by lr, 1.3e-7 by eps and 6e-10 by the initial weights. From all other
# roundings of squares follow 8e-12, 5e-11, 1.3e-8 and 3e-10.
SMOOTH = [
    pytest.param(torch.float64, 64, {"start": 1e-9, "eps": 2e-7}, 1e-9, id="float64-64"),
    pytest.param(torch.float32, 64, {"start": 1e-4, "eps": 1e-4}, 1e-5, id="float32-64"),
    pytest.param(torch.float32, 32, {"start": 1e-4, "eps": 1e-4}, 1e-5, id="float32-32"),
]


def check_smooth(rule, steps, dtype, state_bits, special, tolerance):
    make = defaults(rule)
    found, report = by_train(rule, make, steps, rh.Reversible(state_bits=state_bits), dtype, smooth=True)
    names = [*(name for name, v in make(None, steps).items() if isinstance(v, torch.Tensor)), *["start"] * 4]
    assert report.restored
    for name, f, e in zip(names, found, by_unroll(rule, make, steps, smooth=True), strict=True):
        assert error(f, e) < special.get(name, tolerance), name


@by_rule
@pytest.mark.parametrize(("dtype", "state_bits", "special", "tolerance"), SMOOTH)
def test_a_smooth_net_at_the_default_betas(dtype, state_bits, special, tolerance, rule):
    """Where nothing amplifies, a hundred steps reach what the rounding above says."""
    check_smooth(rule, 100, dtype, state_bits, special, tolerance / (10 if dtype == torch.float64 else 1))


@pytest.mark.slow
@by_rule
@pytest.mark.parametrize(("dtype", "state_bits", "special", "tolerance"), SMOOTH)
def test_a_smooth_net_for_a_thousand_steps(dtype, state_bits, special, tolerance, rule):
    check_smooth(rule, 1000, dtype, state_bits, special, tolerance)


def test_weights_that_never_get_a_gradient():
    """Autograd of torch's formula gives NaN for them; here each derivative is a number, by eps of the size of 1/eps."""
    found, report = by_train("AdamW", KINDS["per step"], 20, rh.Reversible())
    dark = ~problem().lit
    assert dark.any(), "no pixel is dark"
    assert report.weights_below_eps >= 12 * int(dark.sum())
    assert by_train("AdamW", KINDS["per step"], 20, rh.Snapshots())[1].weights_below_eps == report.weights_below_eps
    assert all(bool(torch.isfinite(g).all()) for g in found)
    naive = naive_hypergradient()
    assert not bool(torch.isfinite(naive).all())


def naive_hypergradient():
    """By lr, through 3 steps of torch's formula as it stands."""
    own, lr = problem(), leaf(0.01)
    w = {n: p.detach().clone().requires_grad_() for n, p in own.model.named_parameters()}
    m, s = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0)
    for t in range(3):
        stand_in = lambda x, now=w: torch.func.functional_call(own.model, now, x)  # noqa: E731
        gradients = torch.autograd.grad(own.loss(stand_in, t, None), list(w.values()), create_graph=True)
        for (name, weight), g in zip(list(w.items()), gradients, strict=True):
            m[name], s[name] = 0.9 * m[name] + 0.1 * g, 0.99 * s[name] + 0.01 * g * g
            root = (s[name] / (1 - 0.99 ** (t + 1))).sqrt()
            w[name] = weight - lr * m[name] / (1 - 0.9 ** (t + 1)) / (root + 1e-8)
    return torch.autograd.grad(own.validation(w), lr)[0]


def test_decay_with_a_rate_per_weight_is_refused():
    own = problem()
    lr = {name: leaf(torch.full(p.shape, 0.01)) for name, p in own.model.named_parameters()}
    with pytest.raises(ValueError, match=r"weight_decay: expected 0 for '0.weight', whose learning rate has a value per weight"):
        rh.train(own.model, own.loss, range(3), optimizer=rh.AdamW(lr, weight_decay=0.1))


def test_what_cannot_be_undone_is_refused_before_training():
    own = problem()
    with pytest.raises(ValueError, match=r"expected AdamW to decay 'weight' by a factor from 2\^-16 to 1, got -1"):
        rh.train(own.model, own.loss, range(3), optimizer=rh.AdamW(leaf(2.0), weight_decay=1.0))


@pytest.mark.parametrize("name", ["lr", "beta1", "beta2", "wd"])
def test_against_finite_differences_of_train_itself(name):
    """The unroll shares the formulas of a step with the rule; this shares nothing."""

    def loss_at(value):
        own = problem(smooth=True)
        settings = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "wd": 0.1, name: value}
        optimizer = rh.AdamW(settings["lr"], (settings["beta1"], settings["beta2"]), 1e-6, settings["wd"])
        return own.validation(dict(rh.train(own.model, own.loss, range(STEPS), optimizer=optimizer, adjoint=rh.Reversible())))

    at = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "wd": 0.1}[name]
    value = leaf(at)
    loss_at(value).backward()
    step = 1e-4 * at if name != "beta2" else 1e-5
    with torch.no_grad():
        slope = (loss_at(at + step) - loss_at(at - step)) / (2 * step)
    assert float(value.grad) == pytest.approx(float(slope), rel=1e-4)
