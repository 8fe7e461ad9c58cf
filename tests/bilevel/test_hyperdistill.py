"""HyperDistill against a naive re-implementation, and theta where the answer is known."""

from __future__ import annotations

import pytest
import torch
from bilevel_problem import STEPS, Problem, Scaled, cut

import reversible_hypergrad as rh
from reversible_hypergrad.bilevel import as_estimator
from reversible_hypergrad.bilevel.estimators import hyperdistill
from reversible_hypergrad.bilevel.estimators.distilled import Distilled
from reversible_hypergrad.bilevel.estimators.horizons import Horizons


@pytest.fixture
def seen(monkeypatch):
    """Whatever was distilled: (batch that came, share that was kept, batch afterwards)."""
    found = []

    class Watched(Distilled):
        def add(self, weights, data, kept):
            super().add(weights, data, kept)
            found.append((data, kept, self.data))

    monkeypatch.setattr(hyperdistill, "Distilled", Watched)
    return found


def naive_v(problem, weights, data, lr, alphas):
    """alphas . d(w - lr * gradient)/d l2; the velocity's part has no derivative."""
    weights = [w.detach().requires_grad_() for w in weights]
    named = dict(zip([name for name, _ in problem.model.named_parameters()], weights, strict=True))
    value = problem.penalized(torch.func.functional_call(problem.model, named, data), named, problem.l2)
    gradients = torch.autograd.grad(value, weights, create_graph=True)
    after = sum((a * (w - lr * g)).sum() for a, w, g in zip(alphas, weights, gradients, strict=True))
    return torch.autograd.grad(after, problem.l2)[0]


def test_naive(seen):
    problem, gamma, theta = Scaled(), 0.8, 0.7
    leaves = [problem.l2, problem.lr]
    estimator = rh.HyperDistill(gamma, theta=theta)
    state, star = cut(problem.unrolled(0, 0)), None
    for t, one in enumerate(estimator.walk(lambda: problem.task(0, leaves, False), leaves, split=True), start=1):
        p = (gamma - gamma**t) / (1 - gamma**t)
        star = state[0] if t == 1 else [p * s + (1 - p) * w for s, w in zip(star, state[0], strict=True)]
        came, kept, data = seen[-1]
        assert kept == pytest.approx(p, abs=1e-15)
        before = [] if t == 1 else [tuple(row.tolist()) for row in seen[-2][2]]
        rows = [tuple(row.tolist()) for row in data]
        assert torch.equal(came, problem.x[t - 1])
        assert len(set(rows)) == 16
        assert sum(row in before for row in rows) == round(16 * p)
        new = {tuple(row.tolist()) for row in came}
        assert sum(row in new for row in rows) == 16 - round(16 * p)

        state = cut(problem.unrolled(t - 1, t, state))
        ends = [w.detach().requires_grad_() for w in state[0]]
        *alphas, direct = torch.autograd.grad(problem.value(ends), [*ends, problem.l2])
        v = naive_v(problem, star, data, problem.lr[t - 1].detach(), alphas)
        expected = direct + theta * (1 - gamma**t) / (1 - gamma) * v
        torch.testing.assert_close(one.gradients[0], expected, rtol=1e-10, atol=1e-13)  # some hundred float64 terms
        torch.testing.assert_close(one.direct[0], direct, rtol=1e-10, atol=1e-13)
        assert one.step == t
        for found, weight in zip(one.trained.values(), state[0], strict=True):
            torch.testing.assert_close(found, weight, rtol=1e-12, atol=1e-14)
    assert t == STEPS


def test_hyperparameters_move_between_estimates():
    problem, again = Problem(), Problem()
    leaves = [problem.l2, problem.lr]
    state = None
    for t, one in enumerate(rh.HyperDistill(theta=1.0).walk(lambda: problem.task(0, leaves, False), leaves)):
        state = cut(again.unrolled(t, t + 1, state))
        for found, weight in zip(one.trained.values(), state[0], strict=True):
            torch.testing.assert_close(found, weight, rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            for p in (problem, again):
                p.l2 -= 0.1


class Isotropic:
    """l = k/2 |w|^2 + lam . (Q w w + c w) at lam = 0, where the Hessian is k times the identity, and d2l/(dlam dw) is linear in
    w: with gamma = 1 - lr k, and the same batch in every step, the distilled step stands for all steps exactly."""

    def __init__(self, steps=9, lr=0.1, k=2.0, curved=True):
        torch.manual_seed(3)
        q, c, target = torch.randn(2, 4, 4).double(), torch.randn(2, 4).double(), torch.randn(4).double()
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(torch.randn(4).double())
        self.lam = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        batch = torch.ones(5, 1, dtype=torch.float64)

        def loss(model, batch, lam):
            terms = curved * torch.einsum("kij,i,j->k", q, model.w, model.w) + c @ model.w
            return k / 2 * model.w.square().sum() + batch.mean() * (lam * terms).sum()

        self.task = lambda: rh.Task(
            model,
            loss,
            [batch] * steps,
            outer=lambda weights: (weights["w"] - target).exp().sum() + self.lam.sum(),
            optimizer=rh.SGD(lr, momentum=0.0),
            hyperparameters=self.lam,
        )
        self.gamma = 1 - lr * k


@pytest.mark.parametrize("fit", ["drmad", "exact"])
def test_exact_where_steps_are_contractions(fit, seen):
    problem = Isotropic()
    estimator = rh.HyperDistill(problem.gamma, fit=fit)
    found = list(estimator.walk(problem.task, [problem.lam]))
    # On the line, d2l/(dlam dw) is that of other weights than on the path, and w* is the same mean of them.
    assert estimator.theta == pytest.approx(1, abs=1e-10)
    for one in found:
        (exact,) = as_estimator(rh.Snapshots()).walk(lambda one=one: problem.task().until(one.step), [problem.lam])
        torch.testing.assert_close(one.gradients[0], exact.gradients[0], rtol=1e-10, atol=1e-12)
    assert all(torch.equal(data, torch.ones(5, 1).double()) for _, _, data in seen)  # one batch stays itself


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_horizons_are_truncated_hypergradients(momentum):
    problem = Problem(momentum)
    leaves = [problem.l2]
    one = problem.task(0, [problem.l2, problem.lr], False)
    for s, weights, data, through in Horizons(one, leaves, rh.Snapshots()):
        (expected,) = as_estimator(rh.Truncated(s)).walk(lambda: problem.task(0, [problem.l2, problem.lr], False), leaves, True)
        torch.testing.assert_close(through[0], expected.indirect[0], rtol=1e-9, atol=1e-12)
        assert torch.equal(data, problem.x[STEPS - s])
        path = problem.unrolled(0, STEPS - s)[0]
        for found, weight in zip(weights.values(), path, strict=True):
            torch.testing.assert_close(found, weight.detach(), rtol=1e-12, atol=1e-14)


def test_many_steps_have_a_hundred_horizons():
    problem = Isotropic(steps=230)
    horizons = [s for s, _, _, through in Horizons(problem.task(), [problem.lam], rh.DrMAD()) if through is not None]
    assert len(horizons) == 100
    assert horizons[-1] == 230
    estimator = rh.HyperDistill(problem.gamma)
    next(iter(estimator.walk(problem.task, [problem.lam])))
    assert estimator.theta == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("fit", ["drmad", "exact"])
def test_theta_of_a_network(fit):
    problem = Problem()
    leaves = [problem.l2, problem.lr]
    estimator = rh.HyperDistill(0.9, fit=fit, refit=2)
    values = []
    for _ in range(4):
        next(iter(estimator.walk(lambda: problem.task(0, leaves, False), leaves)))
        values.append(estimator.theta)
    assert all(0 < theta < 100 for theta in values)
    assert len(estimator.state_dict()["fits"]) == 2


def test_a_fit_that_is_negative_is_not_used():
    unstable = Isotropic(steps=2, lr=0.1, k=50.0, curved=False)  # each step multiplies by -4: ratios 1, and -3 / 1.99
    estimator = rh.HyperDistill(0.99)
    with pytest.warns(RuntimeWarning, match=r"theta was fitted as -0.*not used and theta is 1\. Fit by fit='exact'"):
        next(iter(estimator.walk(unstable.task, [unstable.lam])))
    assert estimator.theta == 1
    calm = Isotropic()
    next(iter(estimator.walk(calm.task, [calm.lam])))  # once more, before `refit` walks
    assert len(estimator.state_dict()["fits"]) == 1


def test_goes_on_from_its_state():
    problem = Scaled()
    leaves = [problem.l2, problem.lr]

    def walk(estimator):
        return [e.gradients[0].tolist() for e in estimator.walk(lambda: problem.task(0, leaves, False), leaves)]

    one, other = rh.HyperDistill(refit=3), rh.HyperDistill(refit=3)
    walk(one)
    kept = one.state_dict()
    second = walk(one)
    other.load_state_dict(kept)
    assert walk(other) == second
    assert walk(one) != second  # other draws of examples


def test_compare_leaves_it_as_it_was():
    problem = Problem()
    estimator = rh.HyperDistill(0.9)
    h = [problem.l2, problem.lr]
    found = rh.compare(lambda k, h: problem.task(k, h, False), h, [estimator, rh.OneStep()], horizons=[1, STEPS])
    assert estimator.state_dict() == rh.HyperDistill().state_dict()
    rows = {(row.estimator[:5], row.horizon): row for row in found.rows}
    assert rows["Hyper", 1].indirect_cosine == pytest.approx(1)
    assert rows["Hyper", 1].indirect_ratio == pytest.approx(1)  # theta is 1 at horizon 1
    assert rows["Hyper", STEPS].indirect_cosine > 0.9
    assert abs(rows["Hyper", STEPS].indirect_ratio - 1) < abs(rows["OneSt", STEPS].indirect_ratio - 1)


def test_batches_that_cannot_be_mixed():
    problem = Problem()
    leaves = [problem.l2]

    def walk(batches, loss=lambda model, batch, l2: model(batch[0]).mean() * l2.sum()):
        one = problem.task(0, [problem.l2, problem.lr], False)
        task = rh.Task(problem.model, loss, batches, one.outer, rh.SGD(0.01), hyperparameters=problem.l2)
        return list(rh.HyperDistill(theta=1.0).walk(lambda: task, leaves))

    with pytest.raises(
        ValueError, match=r"batches: HyperDistill draws examples .* one number of them in all tensors, got \[3, 4\]"
    ):
        walk([(torch.randn(3, 5).double(), torch.randn(4)) for _ in range(3)])
    with pytest.raises(ValueError, match=r"batches: HyperDistill draws examples .* got a MicroBatches. Pass tensors"):
        walk([rh.MicroBatches([(torch.randn(3, 5).double(), 1)]) for _ in range(3)])
    with pytest.raises(ValueError, match=r"expected one shape of them, got \(3, 5\) and \(3, 1\)"):
        walk([(torch.randn(3, n).double(), 1) for n in (5, 1)], lambda model, x, l2: model(x[0].expand(3, 5)).mean() * l2.sum())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gamma": 1.5}, ValueError, r"gamma: expected a number in \[0, 1\], got 1.5"),
        ({"theta": 0}, ValueError, "theta: expected a positive number or None, got 0"),
        ({"fit": "line"}, ValueError, "fit: expected 'drmad' or 'exact', got 'line'"),
        ({"refit": 0}, ValueError, "refit: expected an integer >= 1, got 0"),
        ({"seed": None}, TypeError, "seed: expected an integer, got None"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        rh.HyperDistill(**options)


def test_what_it_cannot_see():
    problem = Problem()
    leaves = [problem.l2, problem.lr]
    with pytest.raises(ValueError, match=r"estimator: HyperDistill\(.*gives no gradient by the optimizer's settings"):
        next(iter(rh.HyperDistill().walk(lambda: problem.task(0, leaves), leaves)))
