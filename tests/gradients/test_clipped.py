"""train(clip=...): torch's formulas, and exact gradients through them, by their limits, too."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import unrolled
from models import batch_indices, problem, validation
from strategies import EXACT, STEPS, assert_agree, by_train, by_unroll, leaf
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.gradients.clipped import Clipped
from reversible_hypergrad.gradients.loss import LossGradient

# The norms of this model's gradients fall from 0.5 to 0.3, their largest elements from 0.14 to 0.08: some steps are clipped.
SCHEDULE = torch.linspace(0.5, 0.3, STEPS).double()
BY_NORM, BY_VALUE = (rh.clip_norm, unrolled.by_norm), (rh.clip_value, unrolled.by_value)
BY_LARGEST = (functools.partial(rh.clip_norm, norm_type=math.inf), functools.partial(unrolled.by_norm, norm_type=math.inf))
KINDS = {
    "a number": (*BY_NORM, lambda: 0.4),
    "a tensor": (*BY_NORM, lambda: torch.tensor(0.4)),
    "learned": (*BY_NORM, lambda: leaf(0.4)),
    "per step": (*BY_NORM, lambda: leaf(SCHEDULE)),
    "the largest, learned": (*BY_LARGEST, lambda: leaf(0.1)),
    "values, learned": (*BY_VALUE, lambda: leaf(0.03)),
    "values, per step": (*BY_VALUE, lambda: leaf(SCHEDULE / 10)),
}


@functools.cache
def expected(kind, rule):
    _, clip, limit = KINDS[kind]
    return by_unroll(rule, lambda t: [batch_indices(t)], limit(), clip)


@pytest.mark.parametrize("strategy", EXACT)
@pytest.mark.parametrize(
    ("kind", "rule"), [*((kind, "SGD") for kind in KINDS), ("per step", "AdamW"), ("values, learned", "AdamW")]
)
def test_hypergradients(kind, rule, strategy):
    clip, _, limit = KINDS[kind]
    found = by_train(rule, batch_indices, EXACT[strategy], limit(), clip)
    assert_agree(found, expected(kind, rule), strategy)


def test_some_steps_are_clipped_and_some_are_not():
    """Guards the test above: by a limit of a step that is not clipped, the derivative is 0."""
    assert 0 < int((expected("per step", "SGD").gradients[0] != 0).sum()) < STEPS


def test_finite_differences():
    """Central differences of width 1e-5: third derivatives times 1e-10, and rounding over the width, 1e-11."""

    limit = leaf(0.3)
    model, x, y = problem("mlp", torch.float64)

    def trained_value(limit):
        trained = rh.train(
            model,
            lambda m, i, _: nn.functional.cross_entropy(m(x[i]), y[i]),
            batch_indices,
            steps=STEPS,
            optimizer=rh.SGD(lr=0.1),
            clip=rh.clip_norm(limit),
            adjoint=rh.Snapshots(),
        )
        return validation(model, trained)

    (exact,) = torch.autograd.grad(trained_value(limit), limit)
    difference = (trained_value(0.3 + 1e-5) - trained_value(0.3 - 1e-5)) / 2e-5
    assert float(exact) == pytest.approx(float(difference.detach()), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [0.7, 100.0])
def test_the_formulas_are_torchs(limit, dtype):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator).to(dtype) for shape in [(3, 4), (5,), (), (0, 2)]]

    def torchs(function, *arguments):
        parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        function(parameters, *arguments)
        return [p.grad for p in parameters]

    pairs = [
        (rh.clip_norm(limit), torchs(nn.utils.clip_grad_norm_, limit)),
        (rh.clip_value(limit), torchs(nn.utils.clip_grad_value_, limit)),
    ]
    for clip, right in pairs:
        for a, b in zip(clip(gradients, torch.tensor(limit, dtype=torch.float64)), right, strict=True):
            torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=0)  # norm, quotient, product
    if limit == 100.0:
        for clip, _ in pairs:
            assert all(torch.equal(a, b) for a, b in zip(clip(gradients, torch.tensor(limit)), gradients, strict=True))


@pytest.mark.parametrize("kind", ["learned", "the largest, learned", "values, learned"])
@pytest.mark.parametrize("strategy", EXACT)
def test_gradients_of_zero(strategy, kind):
    """They have derivatives, which a norm of 0 must not spoil: clipping nothing, it is as if it were not there."""

    def gradient_of(**settings):
        scale = leaf(0.0)
        trained = rh.train(
            nn.Linear(3, 2, dtype=torch.float64),
            lambda model, x, scale: scale * model(x).square().mean(),
            torch.linspace(-1, 1, 24).double().reshape(2, 4, 3),
            optimizer=rh.SGD(lr=0.1),
            hyperparameters=scale,
            adjoint=EXACT[strategy],
            **settings,
        )
        return torch.autograd.grad(sum(w.square().sum() for w in trained.values()), scale)[0]

    clip, _, limit = KINDS[kind]
    torch.manual_seed(0)
    plain = gradient_of()
    torch.manual_seed(0)
    clipped = gradient_of(clip=clip(limit()))
    assert float(plain) != 0
    assert float(clipped) == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.parametrize("strategy", EXACT)
def test_a_loss_without_second_derivatives(strategy):
    """Each step goes max_norm * lr along the same line, so the derivative by max_norm is known."""
    limit = leaf([0.5, 0.25, 0.125, 100.0])
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    trained = rh.train(
        model,
        lambda model, x, _: (model.weight * x).sum(),
        torch.tensor([3.0, 4.0, 0.0]).double().expand(4, 1, 3),
        optimizer=rh.SGD(lr=0.1, momentum=1.0 if "reversible" in strategy else 0.0),
        clip=rh.clip_norm(limit),
        adjoint=EXACT[strategy],
    )
    (found,) = torch.autograd.grad(trained["weight"].sum(), limit)
    times = torch.tensor([4.0, 3.0, 2.0, 0.0] if "reversible" in strategy else [1.0, 1.0, 1.0, 0.0]).double()
    torch.testing.assert_close(found, -0.1 * 7 / (5 + 1e-6) * times, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["transformer with dropout", "LSTM", "unused parameters", "tied"])
def test_other_models_are_restored(name, dtype):
    found = by_train("SGD", batch_indices, rh.Reversible(), leaf(0.1), rh.clip_norm, name=name, dtype=dtype)
    assert found.trained.report.restored
    assert all(bool(g.isfinite().all()) for g in found.gradients)
    assert bool(found.gradients[0] != 0)


def test_weights_of_several_dtypes():
    model = nn.ModuleList([nn.Linear(2, 2, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)])

    def loss(model, x, _):
        return sum(layer(x.to(layer.weight.dtype)).double().square().sum() for layer in model)

    limit = leaf(0.5, torch.float32)
    trained = rh.train(model, loss, torch.randn(4, 3, 2), optimizer=rh.SGD(lr=0.1, momentum=0.9), clip=rh.clip_norm(limit))
    sum(w.double().square().sum() for w in trained.values()).backward()
    assert trained.report.restored
    assert limit.grad.dtype == torch.float32
    steps = [p.grad for p in model.parameters()]
    assert [g.dtype for g in steps] == [p.dtype for p in model.parameters()]


def test_a_limit_that_is_never_reached_changes_no_bit():
    plain = by_train("SGD", batch_indices, rh.Reversible(), dtype=torch.float32)
    for clip in (rh.clip_norm, rh.clip_value):
        found = by_train("SGD", batch_indices, rh.Reversible(), leaf(1e3), clip, dtype=torch.float32)
        assert all(torch.equal(w, plain.trained[n]) for n, w in found.trained.items())
        assert all(torch.equal(a, b) for a, b in zip(found.gradients[1:], plain.gradients, strict=True))
        assert float(found.gradients[0]) == 0


def test_forth_and_back_and_alone():
    """of() and values() give the same bits where the inner gradient does, and products may be asked for again."""
    model, x, y = problem("mlp", torch.float32)
    inner = LossGradient(
        model, dict(model.named_parameters()), lambda m, i, _: nn.functional.cross_entropy(m(x[i]), y[i]), batch_indices
    )
    clip = rh.clip_norm(leaf(0.2))
    gradient = Clipped(inner, clip, clip.resolve(range(STEPS), torch.device("cpu")), STEPS)
    evaluation = gradient(2)
    value, gradients = gradient.values(gradient.batch(2))
    assert torch.equal(value, evaluation.value)
    assert all(torch.equal(a, b) for a, b in zip(gradients, evaluation.gradients, strict=True))
    assert float(torch.cat([g.reshape(-1) for g in gradients]).norm()) == pytest.approx(0.2, rel=1e-5)
    directions = [torch.ones_like(w) for w in gradient.weights]
    first, again = (evaluation.products(directions, keep=keep) for keep in (True, False))
    for found, right in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("count", [3, 8])
def test_a_run_that_begins_later(count):
    """One limit for each of its own steps, or for all from step 0 on."""
    limits = torch.arange(1.0, 9.0)[-count:]
    clip = rh.clip_norm(limits)
    model, x, y = problem("mlp", torch.float32)
    inner = LossGradient(
        model, dict(model.named_parameters()), lambda m, i, _: 1e3 * nn.functional.cross_entropy(m(x[i]), y[i]), batch_indices
    )
    gradient = Clipped(inner, clip, clip.resolve(range(5, 8), torch.device("cpu")), 8)
    for step in (5, 6, 7):
        norm = torch.cat([g.reshape(-1) for g in gradient(step).gradients]).norm()
        assert float(norm) == pytest.approx(step + 1, rel=1e-5)
    with pytest.raises(ValueError, match=r"shape \(\) or \(2,\) or \(8,\), one per step; got shape"):
        clip.resolve(range(6, 8), torch.device("cpu")) if count == 3 else rh.clip_norm(torch.ones(4)).resolve(range(6, 8), None)


def test_the_same_tensor_may_be_a_hyperparameter_too():
    number = leaf(0.3)
    model = nn.Linear(3, 1, dtype=torch.float64)
    data = torch.linspace(-1, 1, 60).double().reshape(5, 4, 3)

    def gradients(for_loss, for_clip):
        trained = rh.train(
            model,
            lambda model, x, s: (model(x) - 5 * s).square().mean(),
            data,
            optimizer=rh.SGD(lr=0.1),
            hyperparameters=for_loss,
            clip=rh.clip_norm(for_clip),
        )
        return trained["weight"].square().sum()

    (both,) = torch.autograd.grad(gradients(number, number), number)
    other = leaf(0.3)
    parts = torch.autograd.grad(gradients(number, other), [number, other])
    assert float(both) == pytest.approx(float(sum(parts)), rel=1e-12)


def test_second_backward():
    found = []
    limit = leaf(0.3)
    model, x, y = problem("mlp", torch.float64)
    trained = rh.train(
        model,
        lambda m, i, _: nn.functional.cross_entropy(m(x[i]), y[i]),
        batch_indices,
        steps=STEPS,
        optimizer=rh.SGD(lr=0.1),
        clip=rh.clip_norm(limit),
    )
    value = validation(model, trained)
    for retain in (True, False):
        found.append(torch.autograd.grad(value, limit, retain_graph=retain)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("adjoint", [rh.Reversible(segments=3), rh.Checkpoint(), rh.Neumann(terms=4)])
def test_captured(adjoint, tapes):
    results = [
        by_train("SGD", batch_indices, adjoint, leaf(0.2), rh.clip_norm, dtype=torch.float32, cuda_graph=graph)
        for graph in (False, True)
    ]
    assert tapes[0].replays > STEPS
    assert all(torch.equal(w, results[1].trained[n]) for n, w in results[0].trained.items())
    assert all(torch.equal(a, b) for a, b in zip(results[0].gradients, results[1].gradients, strict=True))


def test_a_norm_beyond_the_range_is_an_error():
    """Clipped by infinity, finite gradients would be 0."""

    def loss(model, x, _):
        return 1e25 * model(x).sum()

    with pytest.raises(FloatingPointError, match="step 0: weight: its gradient is not finite"):
        rh.train(nn.Linear(3, 1), loss, torch.ones(2, 4, 3), optimizer=rh.SGD(lr=0.1), clip=rh.clip_norm(1.0))


BAD = {
    "no clip": (lambda: 1.0, TypeError, r"clip: expected rh.clip_norm\(...\), rh.clip_value\(...\) or None, got 1.0"),
    "the function": (lambda: rh.clip_norm, TypeError, "clip: expected"),
    "text": (lambda: rh.clip_norm("1"), TypeError, "max_norm: expected a number or a tensor, got str"),
    "True": (lambda: rh.clip_value(True), TypeError, "max_value: expected a number or a tensor, got bool"),
    "a list": (lambda: rh.clip_norm([1.0, 2.0]), TypeError, r"got list. Pass lists as torch.tensor\(...\)"),
    "integers": (lambda: rh.clip_norm(torch.tensor(1)), TypeError, "expected a floating-point tensor, got torch.int64"),
    "zero": (lambda: rh.clip_norm(0), ValueError, "max_norm: expected finite numbers above 0, got 0"),
    "negative": (lambda: rh.clip_value(-1.0), ValueError, "max_value: expected finite numbers above 0, got -1"),
    "infinite": (lambda: rh.clip_norm(math.inf), ValueError, "got inf.* leave clip= out"),
    "NaN in a step": (lambda: rh.clip_norm(torch.tensor([1.0, math.nan, 1.0])), ValueError, "got nan"),
    "shape": (lambda: rh.clip_norm(torch.ones(4)), ValueError, r"shape \(\) or \(3,\), one per step; got shape \(4,\)"),
    "norm 1": (lambda: rh.clip_norm(1.0, norm_type=1), ValueError, "norm_type: expected 2 or math.inf, got 1"),
    "norm True": (lambda: rh.clip_norm(1.0, norm_type=True), ValueError, "norm_type: expected 2 or math.inf, got True"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        rh.train(nn.Linear(3, 1), lambda m, x, _: m(x).sum(), torch.ones(3, 4, 3), optimizer=rh.SGD(lr=0.1), clip=make())


def test_shown():
    assert repr(rh.clip_norm(1)) == "clip_norm(1.0, norm_type=2.0)"
    assert repr(rh.clip_value(torch.ones(3))) == "clip_value(tensor of shape (3,))"
