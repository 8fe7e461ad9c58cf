"""EvoGrad against a naive re-implementation, and its mean against the direction that it stands for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from bilevel_problem import STEPS, Problem, Toy, cut
from torch import nn
from torch.autograd.function import once_differentiable

import reversible_hypergrad as rh


class Recorded(rh.EvoGrad):
    """Keeps its draws."""

    def __init__(self, **options):
        super().__init__(**options)
        self.draws = []

    def _draw(self, weights, word):
        self.draws.append(list(super()._draw(weights, word).values()))
        return dict(zip(weights, self.draws[-1], strict=True))


def naive(problem, weights, t, draws, sigma, tau):
    """The authors' formula, by autograd through the shares. Gradient of the outer loss at the mixed weights, all of it."""
    losses, copies = [], [[w + sigma * n for w, n in zip(weights, noise, strict=True)] for noise in draws]
    names = [name for name, _ in problem.model.named_parameters()]
    for own in copies:
        named = dict(zip(names, own, strict=True))
        output = torch.func.functional_call(problem.model, named, problem.x[t])
        losses.append(problem.penalized(output, named, problem.l2))
    shares = torch.softmax(-torch.stack(losses) / tau, 0)
    mixed = [sum(s * own[i] for s, own in zip(shares, copies, strict=True)) for i in range(len(weights))]
    value = problem.value(mixed)
    return value, torch.autograd.grad(value, problem.l2)[0]


@pytest.mark.parametrize("options", [{}, {"copies": 3, "sigma": 0.1, "tau": 0.5, "noise": "normal"}], ids=["defaults", "large"])
def test_naive(options):
    problem = Problem()
    estimator = Recorded(**options)
    leaves = [problem.l2, problem.lr]
    state, k = cut(problem.unrolled(0, 0)), estimator.copies
    for t, one in enumerate(estimator.walk(lambda: problem.task(0, leaves, False), leaves, split=True)):
        value, expected = naive(problem, state[0], t, estimator.draws[-k:], estimator.sigma, estimator.tau)
        assert one.value == pytest.approx(float(value.detach()), rel=1e-12)
        # The naive shares' derivatives cancel to sigma of their size.
        torch.testing.assert_close(one.gradients[0], expected, rtol=1e-9, atol=1e-12)
        assert not one.gradients[1].any()
        assert one.step == t + 1
        state = cut(problem.unrolled(t, t + 1, state))
        for found, weight in zip(one.trained.values(), state[0], strict=True):
            torch.testing.assert_close(found, weight, rtol=1e-12, atol=1e-14)
    assert t == STEPS - 1
    assert (one.gradients[0] - one.indirect[0]).abs().min() > 0  # the direct part is there


def test_the_mean_of_many_draws():
    """-(sigma^2 / tau) (K - 1) / K * d2l/(dlam dw) . grad L, by second derivatives.

    With equal shares 1/K and noise of mean 0 and variance 1, a draw is -(1 / (K tau)) sum_k sigma (a . (n_k - mean)) (B . w_k)
    up to constants, a the outer gradient and B the mixed derivative; E[(n_k - mean) n_k'] = (K - 1) / K. What is left out is of
    relative size sigma, by the curvature of both losses, and (sigma / tau) times the slope of l, by shares that are not equal:
    1 % together, which is a third of a standard error.
    """
    problem = Problem()
    leaves = [problem.l2]
    estimator = rh.EvoGrad(copies=11, sigma=1e-4)

    def task():
        return problem.task(0, [problem.l2, problem.lr], False).until(1)

    draws = torch.stack([next(iter(estimator.walk(task, leaves, True))).indirect[0] for _ in range(60)])
    weights = [w.detach().requires_grad_() for w in problem.model.parameters()]
    names = [name for name, _ in problem.model.named_parameters()]
    alpha = torch.autograd.grad(problem.value(weights), weights)
    named = dict(zip(names, weights, strict=True))
    output = torch.func.functional_call(problem.model, named, problem.x[0])
    by_weights = torch.autograd.grad(problem.penalized(output, named, problem.l2), weights, create_graph=True)
    product = sum((a * g).sum() for a, g in zip(alpha, by_weights, strict=True))
    expected = -(1e-8 / 0.05) * (10 / 11) * torch.autograd.grad(product, problem.l2)[0]
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() < 3 * error).all(), (draws.mean(0), expected, error)
    assert (error < 0.5 * expected.abs()).any(), "too few draws to tell it from 0"


def test_the_toy():
    """With signs and K = 2 a draw is 0, or twice the mean: both copies on one side, or on either."""
    toy = Toy(1.0, 0.5)  # where d2l/(dlam dx) = 2, and the outer slope 1
    estimator = rh.EvoGrad(sigma=1e-3)
    draws = torch.tensor([float(next(iter(estimator.walk(toy.task, [toy.lam]))).gradients[0]) for _ in range(100)])
    mean = -(1e-6 / 0.05) * 0.5 * 2 * 1
    # Relative: sigma^2 / tau^2 by unequal shares, sigma by curvature.
    assert all(d == 0 or abs(d / (2 * mean) - 1) < 5e-3 for d in draws.tolist())
    assert 20 < int((draws != 0).sum()) < 80  # 8 standard deviations
    at_minimum = Toy(1 / 1.5, 0.5, steps=60)
    found = [float(e.gradients[0]) for e in estimator.walk(at_minimum.task, [at_minimum.lam])]
    # At the minimum the exact one is d2l/(dlam dx) * slope / d2l/dx2 = ... / (2 (1 + lam)), so both have one sign.
    assert at_minimum.exact < 0
    assert min(found) == pytest.approx(2 * (1e-6 / 0.05) * 0.5 * at_minimum.exact * 2 * 1.5, rel=5e-3)
    assert max(found) == 0


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def of_batch_norm(square=torch.square, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    still = copy.deepcopy(model).eval()
    data, scale = torch.randn(6, 8, 3), torch.tensor(0.5, requires_grad=True)

    def task():
        return rh.Task(
            model,
            lambda model, x, scale: square(model(x) - scale).mean(),
            data,
            outer=lambda w: torch.func.functional_call(still, (dict(w), w.buffers), data[0]).square().mean(),
            optimizer=rh.SGD(0.1),
            hyperparameters=scale,
            options=options,
        )

    return task, scale


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=repr)
def test_buffers_and_random_numbers_of_copies_do_not_leak(options):
    task, scale = of_batch_norm(**options)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    *_, last = rh.EvoGrad(copies=4, sigma=0.01).walk(task, [scale])
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        alone = task().train(rh.Snapshots())
    for name, buffer in alone.buffers.items():
        torch.testing.assert_close(last.trained.buffers[name], buffer, rtol=0, atol=0)
    for name, weight in alone.items():
        torch.testing.assert_close(last.trained[name], weight, rtol=1e-6, atol=1e-7)  # runs in parts, of float32
    assert last.gradients[0] != 0


def test_no_second_derivatives():
    task, scale = of_batch_norm(Square.apply)
    plain, other = of_batch_norm()
    found = [float(e.gradients[0]) for e in rh.EvoGrad().walk(task, [scale])]
    assert found == pytest.approx([float(e.gradients[0]) for e in rh.EvoGrad().walk(plain, [other])], rel=1e-4)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        list(rh.OneStep().walk(task, [scale]))


def test_noise_by_seed_step_and_walk():
    toy = Toy(1.0, 0.5, steps=8)

    def walk(estimator):
        return [float(e.gradients[0]) for e in estimator.walk(toy.task, [toy.lam])]

    one, other = rh.EvoGrad(noise="normal"), rh.EvoGrad(noise="normal")
    first = walk(one)
    kept = one.state_dict()
    second = walk(one)
    assert len(set(first + second)) == 16
    assert walk(other) == first
    other.load_state_dict(kept)
    assert walk(other) == second
    assert walk(rh.EvoGrad(noise="normal", seed=1)) != first
    assert [e.step for e in rh.EvoGrad(every=3).walk(toy.task, [toy.lam])] == [3, 6, 8]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"copies": 1}, ValueError, "copies: expected an integer >= 2, got 1"),
        ({"sigma": 0}, ValueError, "sigma: expected a positive number, got 0"),
        ({"tau": -1.0}, ValueError, "tau: expected a positive number, got -1.0"),
        ({"noise": "cauchy"}, ValueError, "noise: expected 'sign' or 'normal', got 'cauchy'"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer, got 0.5"),
        ({"every": 0}, ValueError, "every: expected an integer >= 1, got 0"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        rh.EvoGrad(**options)


def test_what_it_cannot_see():
    problem = Problem()
    leaves = [problem.l2, problem.lr]
    with pytest.raises(ValueError, match=r"estimator: EvoGrad\(.*gives no gradient by the optimizer's settings"):
        next(iter(rh.EvoGrad().walk(lambda: problem.task(0, leaves), leaves)))
    task, scale = of_batch_norm(clip=rh.clip_norm(scale_limit := torch.tensor(1.0, requires_grad=True)))
    with pytest.raises(ValueError, match=r"gives no gradient by the limit of clip"):
        next(iter(rh.EvoGrad().walk(task, [scale, scale_limit])))


def test_compare():
    problem = Problem()
    found = rh.compare(lambda k, h: problem.task(k, h, False), [problem.l2, problem.lr], [rh.EvoGrad(copies=500)], horizons=[1])
    assert found.rows[1].indirect_ratio < 1e-2  # a step of 1e-5, beside one of 0.1
    assert found.rows[1].indirect_cosine > 0.5
