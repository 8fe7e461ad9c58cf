"""Approximate strategies where they are right, and what exactly they approximate where they are not."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from kinds import error
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.gradients.evaluation import LossEvaluation

D = 6
APPROXIMATE = {
    "truncated": rh.Truncated(150),
    "DrMAD": rh.DrMAD(),
    "Neumann": rh.Neumann(150),
    "conjugate gradient": rh.ConjugateGradient(20, tolerance=1e-12),
}
IMPLICIT = {name: APPROXIMATE[name] for name in ("Neumann", "conjugate gradient")}


class Ridge:
    """Linear regression with two penalties: exp(log_l2) in the loss, and weight decay. Strongly convex, curvatures 0.5 to 3."""

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        orthogonal, _ = torch.linalg.qr(torch.randn(30, D, generator=generator, dtype=torch.float64))
        self.x = orthogonal * (30 * torch.linspace(0.4, 2.5, D, dtype=torch.float64)).sqrt()
        self.y = self.x @ torch.randn(D, generator=generator, dtype=torch.float64) + 1.0
        self.target = torch.randn(D, generator=generator, dtype=torch.float64)
        self.model = nn.Linear(D, 1, bias=False, dtype=torch.float64)
        self.start = torch.randn(1, D, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            self.model.weight.copy_(self.start)
        self.log_l2 = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
        self.decay = torch.linspace(0.02, 0.2, D, dtype=torch.float64).reshape(1, D).requires_grad_()

    def loss(self, model, batch, log_l2):
        return 0.5 * (model(self.x)[:, 0] - self.y).square().mean() + 0.5 * log_l2.exp().sum() * model.weight.square().sum()

    def downstream(self, trained):
        return 0.5 * (trained["weight"][0] - self.target).square().sum()

    def train(self, adjoint, steps=300, lr=0.2, **settings):
        optimizer = rh.SGD(lr=lr, **{"momentum": 0.5, "weight_decay": self.decay, **settings})
        loss, batches = self.loss, lambda step: None
        return rh.train(self.model, loss, batches, steps=steps, optimizer=optimizer, hyperparameters=self.log_l2, adjoint=adjoint)

    def gradients(self, adjoint, *inputs, **settings):
        trained = self.train(adjoint, **settings)
        return trained, torch.autograd.grad(self.downstream(trained), [self.log_l2, self.decay, *inputs])

    def hessian(self):
        return self.x.T @ self.x / 30 + self.log_l2.exp().detach() * torch.eye(D) + self.decay.detach()[0].diag()

    def minimum(self):
        return torch.linalg.solve(self.hessian(), self.x.T @ self.y / 30)

    def implicit(self, weights, u):
        """-M'u for the two penalties."""
        return -(self.log_l2.exp().detach() * (weights @ u)).reshape(1), -(weights * u).reshape(1, D)


@pytest.fixture
def ridge():
    return Ridge()


SETTINGS = {"momentum": {}, "momentum 0": {"momentum": 0.0}, "Nesterov": {"nesterov": True}}


@functools.cache
def of_the_run(settings):
    return Ridge().gradients(rh.Snapshots(), **SETTINGS[settings])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    ("name", "tolerance"),
    # The smallest curvature is 0.55: what Truncated leaves out is 0.89^150 or less. On the straight line, the place k steps
    # before the end is k/300 of the way off, and counts 0.89^k or less.
    [("truncated", 1e-6), ("DrMAD", 0.05), ("Neumann", 1e-6), ("conjugate gradient", 1e-9)],
)
def test_penalties_at_a_minimum_against_the_closed_form(ridge, name, tolerance, settings):
    w = ridge.minimum()
    expected = ridge.implicit(w, torch.linalg.solve(ridge.hessian(), w - ridge.target))
    exact, of_run = of_the_run(settings)
    trained, found = ridge.gradients(APPROXIMATE[name], **SETTINGS[settings])
    assert torch.equal(trained["weight"], exact["weight"])
    torch.testing.assert_close(trained["weight"][0].detach(), w, rtol=1e-10, atol=0)
    for f, r, e in zip(found, of_run, expected, strict=True):
        assert error(r, e) < 1e-9
        assert error(f, e) < tolerance


@functools.cache
def of_logistic_regression(adjoint):
    torch.manual_seed(1)
    x, y = torch.randn(40, 4).double(), torch.randint(3, (40,))
    model = nn.Linear(4, 3).double()
    log_l2 = {n: torch.tensor(-2.0, dtype=torch.float64, requires_grad=True) for n, _ in model.named_parameters()}

    def loss(model, batch, log_l2):
        return F.cross_entropy(model(x), y) + sum(log_l2[n].exp() * p.square().sum() for n, p in model.named_parameters())

    optimizer = rh.SGD(0.5, 0.5)
    trained = rh.train(model, loss, lambda step: None, steps=250, optimizer=optimizer, hyperparameters=log_l2, adjoint=adjoint)
    sum((w - 1).square().sum() for w in trained.values()).backward()
    return torch.stack([t.grad for t in log_l2.values()])


LONG_SNAPSHOTS = rh.Snapshots()


@pytest.mark.parametrize(
    ("adjoint", "tolerance"),
    # The straight line is off by a share that shrinks only with the number of steps.
    [(rh.Truncated(170), 1e-5), (rh.DrMAD(), 0.2), (rh.Neumann(170), 1e-5), (rh.ConjugateGradient(30), 1e-5)],
    ids=["truncated", "DrMAD", "Neumann", "conjugate gradient"],
)
def test_penalties_of_a_converged_logistic_regression(adjoint, tolerance):
    assert error(of_logistic_regression(adjoint), of_logistic_regression(LONG_SNAPSHOTS)) < tolerance


# What each one is, to rounding, wherever it is


def test_truncated_with_all_steps_is_exact(ridge):
    weight = ridge.model.weight
    _, expected = ridge.gradients(rh.Snapshots(), weight, steps=30)
    for steps in (30, 31, 1000):
        trained, found = ridge.gradients(rh.Truncated(steps), weight, steps=30)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
        assert trained.report.kept_bytes > 0


@pytest.mark.parametrize("kept", [1, 7, 28])
def test_truncated_is_the_last_steps_share(ridge, kept):
    """Step by step, it gives what an exact strategy gives by the last settings, and 0 by earlier ones."""
    results = []
    for adjoint in (rh.Snapshots(), rh.Truncated(kept)):
        rates = torch.linspace(0.1, 0.2, 30, dtype=torch.float64).reshape(30, 1).requires_grad_()
        momenta = torch.linspace(0.0, 0.5, 30, dtype=torch.float64).requires_grad_()
        penalties = torch.full((30,), -2.0, dtype=torch.float64, requires_grad=True)

        def loss(model, step, penalties):
            return ridge.loss(model, None, penalties[step])

        optimizer = rh.SGD(rates, momenta)
        trained = rh.train(ridge.model, loss, range(30), optimizer=optimizer, hyperparameters=penalties, adjoint=adjoint)
        gradients = torch.autograd.grad(ridge.downstream(trained), [rates, momenta, penalties, ridge.model.weight])
        results.append([g.reshape(-1) for g in gradients])
    exact, truncated = results
    for e, t in zip(exact[:3], truncated[:3], strict=True):
        assert torch.equal(t[-kept:], e[-kept:])
        assert not t[:-kept].any()
        assert e[1:-kept].all()  # the first momentum meets no velocity
    assert not truncated[3].any()
    assert exact[3].any()


@pytest.mark.parametrize("nesterov", [False, True])
def test_drmad_by_hand(ridge, nesterov):
    """The adjoint of every step on the straight line, with dense matrices."""
    steps, mu, lr = 9, 0.5, 0.2
    rate = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    momentum = torch.tensor(mu, dtype=torch.float64, requires_grad=True)
    inputs = (rate, momentum, ridge.model.weight)
    trained, found = ridge.gradients(rh.DrMAD(), *inputs, steps=steps, lr=rate, momentum=momentum, nesterov=nesterov)
    start, end, h = ridge.start[0], trained["weight"].detach()[0], ridge.hessian()
    aw, av = end - ridge.target, torch.zeros(D, dtype=torch.float64)
    of_l2, of_decay, of_rate, of_momentum = 0.0, torch.zeros(D), 0.0, 0.0
    for t in reversed(range(steps)):
        w = start + (end - start) * t / steps
        v = (start - end) / (steps * lr) if t else torch.zeros(D, dtype=torch.float64)
        g = h @ w - ridge.x.T @ ridge.y / 30
        v_after = mu * v + g
        if nesterov:
            of_rate -= aw @ (g + mu * v_after)
            of_momentum -= lr * aw @ v_after
            av = av - lr * mu * aw
            u = av - lr * aw
        else:
            of_rate -= aw @ v_after
            av = u = av - lr * aw
        of_momentum += av @ v
        of_l2 += ridge.log_l2.exp().item() * (u @ w)
        of_decay = of_decay + u * w
        aw, av = aw + h @ u, mu * av
    for f, e in zip(found, (of_l2, of_decay, of_rate, of_momentum, aw), strict=True):
        torch.testing.assert_close(f.reshape(-1), torch.as_tensor(e, dtype=torch.float64).reshape(-1), rtol=1e-11, atol=1e-13)


def test_drmad_is_exact_where_nothing_moves(ridge):
    """Then the line is the trajectory."""
    with torch.no_grad():
        ridge.model.weight.copy_(ridge.minimum())
    _, expected = ridge.gradients(rh.Snapshots(), ridge.model.weight, steps=40)
    _, found = ridge.gradients(rh.DrMAD(), ridge.model.weight, steps=40)
    assert max(error(f, e) for f, e in zip(found, expected, strict=True)) < 1e-11


def test_drmad_gets_better_with_more_steps(ridge):
    errors = []
    for steps in (75, 150, 300):
        _, expected = ridge.gradients(rh.Snapshots(), steps=steps)
        _, found = ridge.gradients(rh.DrMAD(), steps=steps)
        errors.append(error(found[1], expected[1]))
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0]
    assert errors[2] > 1e-4  # and yet it is none of the exact ones


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("own", [None, 0.05])
def test_neumann_by_hand(ridge, terms, own):
    """Far from a minimum, with few terms, and a learning rate per weight."""
    rates = torch.linspace(0.1, 0.3, D, dtype=torch.float64).reshape(1, D)
    trained, found = ridge.gradients(rh.Neumann(terms, lr=own), steps=3, lr=rates)
    p = rates[0].diag() if own is None else own * torch.eye(D, dtype=torch.float64)
    w, h = trained["weight"].detach()[0], ridge.hessian()
    series = sum(torch.linalg.matrix_power(torch.eye(D, dtype=torch.float64) - h @ p, i) for i in range(terms))
    for f, e in zip(found, ridge.implicit(w, p @ series @ (w - ridge.target)), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-14)


def test_conjugate_gradient_ends_after_as_many_products_as_weights(ridge):
    trained, found = ridge.gradients(rh.ConjugateGradient(D, tolerance=0), steps=3)
    w = trained["weight"].detach()[0]
    expected = ridge.implicit(w, torch.linalg.solve(ridge.hessian(), w - ridge.target))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


def test_tolerance_of_conjugate_gradient(ridge, monkeypatch):
    calls = []
    products = LossEvaluation.products
    monkeypatch.setattr(LossEvaluation, "products", lambda *a, **k: (calls.append(1), products(*a, **k))[1])
    counts = []
    for tolerance in (0.5, 1e-2, 1e-6):
        calls.clear()
        trained, found = ridge.gradients(rh.ConjugateGradient(50, tolerance), steps=3)
        counts.append(len(calls))
        w, h = trained["weight"].detach()[0], ridge.hessian()
        u = -found[1][0] / w  # of the decay per weight
        assert float((h @ u - (w - ridge.target)).norm() / (w - ridge.target).norm()) < tolerance
    assert counts[0] < counts[1] < counts[2] <= D + 1 + 1


@pytest.mark.parametrize("adjoint", IMPLICIT.values(), ids=IMPLICIT)
def test_a_minimum_does_not_depend_on_how_it_was_found(ridge, adjoint):
    rates = torch.full((50, 1), 0.1, dtype=torch.float64, requires_grad=True)
    momentum, dampening = (torch.tensor(m, dtype=torch.float64, requires_grad=True) for m in (0.5, 0.1))
    inputs = (rates, momentum, dampening, ridge.model.weight)
    _, found = ridge.gradients(adjoint, *inputs, steps=50, lr=rates, momentum=momentum, dampening=dampening)
    assert all(bool(g.any()) for g in found[:2])
    assert not any(bool(g.any()) for g in found[2:])


@pytest.mark.parametrize("adjoint", IMPLICIT.values(), ids=IMPLICIT)
def test_only_the_last_steps_loss_and_decay_count(ridge, adjoint):
    decays = torch.full((50, 1), 0.1, dtype=torch.float64, requires_grad=True)
    trained = ridge.train(adjoint, steps=50, weight_decay=decays)
    (found,) = torch.autograd.grad(ridge.downstream(trained), [decays])
    assert not found[:-1].any()
    assert found[-1].any()


# Labels and errors


EXACT = [rh.Reversible(), rh.Snapshots(), rh.Unroll(), rh.Checkpoint(), rh.RecursiveCheckpoint(), rh.ForwardMode()]


@pytest.mark.parametrize("adjoint", [*EXACT, *APPROXIMATE.values()], ids=repr)
def test_labels(ridge, adjoint):
    """Of the class, the object and the report; and exact ones are exact, approximate ones are not."""
    adjoint_is_exact = any(adjoint is a for a in EXACT)
    assert type(adjoint).exact is adjoint_is_exact
    assert adjoint.exact is adjoint_is_exact
    assert bool(adjoint.approximation) is not adjoint_is_exact
    assert adjoint_is_exact or "APPROXIMATE" in type(adjoint).__doc__.splitlines()[0]
    settings = {"steps": 160, "lr": 0.005, "weight_decay": torch.full((1, D), 0.1, dtype=torch.float64)}
    trained = ridge.train(adjoint, **settings)
    (found,) = torch.autograd.grad(ridge.downstream(trained), [ridge.log_l2])
    report = trained.report
    assert (report.adjoint, report.exact, report.approximation) == (repr(adjoint), adjoint.exact, adjoint.approximation)
    (expected,) = torch.autograd.grad(ridge.downstream(ridge.train(rh.Unroll(), **settings)), [ridge.log_l2])
    assert (error(found, expected) < 1e-9) is adjoint_is_exact
    # Truncated does repeat the steps that it walks back through.
    assert report.restored is (adjoint_is_exact or isinstance(adjoint, rh.Truncated))


def test_an_indefinite_hessian(ridge):
    def saddle(model, batch, log_l2):
        w = model.weight[0]
        return 0.5 * (w[1:].square().sum() - w[0] ** 2) + 0.0 * log_l2.sum()

    before = ridge.model.weight.detach().clone()
    arguments = {"steps": 3, "optimizer": rh.SGD(0.1), "hyperparameters": ridge.log_l2}
    trained = rh.train(ridge.model, saddle, lambda step: None, adjoint=rh.ConjugateGradient(10), **arguments)
    for _ in range(2):  # the second time it trains once more, and refuses again
        with pytest.raises(ArithmeticError, match=r"ConjugateGradient needs a positive definite Hessian.*curvature -.*rh\.Rev"):
            ridge.downstream(trained).backward(retain_graph=True)
    assert ridge.log_l2.grad is None
    assert ridge.model.weight.grad is None
    assert torch.equal(ridge.model.weight, before)


def test_neumann_with_a_last_learning_rate_of_zero(ridge):
    rates = torch.linspace(0.2, 0.0, 50, dtype=torch.float64).reshape(50, 1)
    trained = ridge.train(rh.Neumann(5), steps=50, lr=rates)
    with pytest.raises(ValueError, match=r"learning rates as its step size, and they are all 0\. Pass Neumann\(terms, lr="):
        ridge.downstream(trained).backward()
    assert ridge.log_l2.grad is None
    _, found = ridge.gradients(rh.Neumann(5, lr=0.1), steps=50, lr=rates)
    assert all(bool(g.any()) for g in found)


@pytest.mark.parametrize("adjoint", IMPLICIT.values(), ids=IMPLICIT)
def test_an_implicit_gradient_needs_a_step(ridge, adjoint):
    with pytest.raises(ValueError, match="steps: expected at least one step for an implicit gradient"):
        ridge.train(adjoint, steps=0)


def test_forward_mode_refuses_many_hyperparameters(ridge):
    rates = torch.full((40, 1), 0.1, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.1, dtype=torch.float64)
    settings = {"steps": 40, "lr": rates, "weight_decay": decay}
    with pytest.raises(ValueError, match=r"ForwardMode\(limit=40\) got 41 hyperparameters.*rh\.Reversible\(\).*force=True"):
        ridge.train(rh.ForwardMode(limit=40), **settings)
    for adjoint in (rh.ForwardMode(limit=3, force=True), rh.ForwardMode(limit=41, chunk=7), rh.ForwardMode(chunk=1000)):
        trained = ridge.train(adjoint, **settings)
        assert trained.report.kept_bytes == 41 * 2 * 16 * 8  # per tangent two vectors of 6 weights, padded to 16
    (found,) = torch.autograd.grad(ridge.downstream(trained), [rates])
    (expected,) = torch.autograd.grad(ridge.downstream(ridge.train(rh.Snapshots(), **settings)), [rates])
    assert error(found, expected) < 1e-11


def test_forward_mode_and_initial_weights(ridge):
    """The model's own get no gradient; those given do, and count as hyperparameters."""
    ridge.downstream(ridge.train(rh.ForwardMode(), steps=20)).backward()
    assert ridge.model.weight.grad is None
    assert ridge.log_l2.grad.any()
    results = []
    for adjoint in (rh.ForwardMode(), rh.Snapshots()):
        given = ridge.start.clone().requires_grad_()
        arguments = {"steps": 20, "optimizer": rh.SGD(0.05), "hyperparameters": ridge.log_l2, "initial": {"weight": given}}
        trained = rh.train(ridge.model, ridge.loss, lambda step: None, adjoint=adjoint, **arguments)
        results.append(torch.autograd.grad(ridge.downstream(trained), [given])[0])
    assert error(*results) < 1e-11
    with pytest.raises(ValueError, match="got 7 hyperparameters"):
        rh.train(ridge.model, ridge.loss, lambda step: None, adjoint=rh.ForwardMode(limit=6), **arguments)


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda: rh.Truncated(0), ValueError, "steps: expected an integer >= 1, got 0"),
        (lambda: rh.Truncated(2.0), TypeError, "steps: expected an integer >= 1, got 2.0"),
        (lambda: rh.Truncated(True), TypeError, "steps"),
        (lambda: rh.Neumann(0), ValueError, "terms"),
        (lambda: rh.Neumann("5"), TypeError, "terms"),
        (lambda: rh.Neumann(5, lr=0.0), ValueError, "lr: expected a number > 0 or None, got 0.0"),
        (lambda: rh.Neumann(5, lr=float("nan")), ValueError, "lr"),
        (lambda: rh.ConjugateGradient(0), ValueError, "iterations"),
        (lambda: rh.ConjugateGradient(1.5), TypeError, "iterations"),
        (lambda: rh.ConjugateGradient(5, tolerance=-1.0), ValueError, "tolerance"),
        (lambda: rh.ConjugateGradient(5, tolerance=float("nan")), ValueError, "tolerance"),
        (lambda: rh.ForwardMode(chunk=0), ValueError, "chunk"),
        (lambda: rh.ForwardMode(limit=1.0), TypeError, "limit"),
        (lambda: rh.Checkpoint(every=0), ValueError, "every: expected an integer >= 1 or None, got 0"),
        (lambda: rh.Checkpoint(every="7"), TypeError, "every"),
        (lambda: rh.RecursiveCheckpoint(arity=1), ValueError, "arity: expected an integer >= 2, got 1"),
        (lambda: rh.RecursiveCheckpoint(arity=2.0), TypeError, "arity"),
        (lambda: rh.RecursiveCheckpoint(slots=0), ValueError, "slots: expected an integer >= 1 or None, got 0"),
        (lambda: rh.RecursiveCheckpoint(arity=3, slots=4), ValueError, "arity: expected none beside slots=4"),
        (lambda: rh.Snapshots(store="missing"), NotADirectoryError, "store: expected 'device', 'host' or .* got 'missing'"),
        (lambda: rh.Checkpoint(store="missing"), NotADirectoryError, "store"),
        (lambda: rh.RecursiveCheckpoint(store="missing"), NotADirectoryError, "store"),
    ],
)
def test_arguments_of_the_strategies(make, error_type, message):
    with pytest.raises(error_type, match=message):
        make()
