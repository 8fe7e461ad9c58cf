"""Every rule, the library's and users', from its declaration alone: its trajectory, and its hypergradients by every setting."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from rules.shipped_rules import CASES
from rules.user_rules import RMSprop
from torch import nn
from torch.func import functional_call

import reversible_hypergrad as rh
from reversible_hypergrad.rules import Rule, SettingSpec, root

STEPS = 9
STRATEGIES = {
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "recursive checkpoint": rh.RecursiveCheckpoint(slots=3),
    "unroll": rh.Unroll(),
    "forward mode": rh.ForwardMode(chunk=32, force=True),
}


def task(case=None):
    """A small network whose third input is always 0, so that some weights never get a gradient; of matrices, if need be."""
    torch.manual_seed(5)
    bias = case is None or not case.matrices
    model = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()
    x, y = torch.randn(STEPS, 8, 4).double(), torch.randint(3, (STEPS, 8))
    x[..., 2] = 0.0
    return model, x, y


def loss_of(x, y):
    return lambda model, step, _: F.cross_entropy(model(x[step]), y[step])


def downstream(weights):
    """Smooth, and it looks at the weights of the dead input, too."""
    return sum((w * torch.linspace(-1, 1, w.numel()).double().reshape(w.shape)).sum() + w.square().sum() for w in weights)


# How the settings are given: leaves by name, for the optimizer, and what the reference reads at a step for a parameter.


def per_run(case, model):
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in case.settings.items()}


def per_step(case, model):
    slope = torch.linspace(0.9, 1.04, STEPS).double()
    return {name: (value * slope).requires_grad_() for name, value in case.settings.items()}


def per_weight(case, model):
    leaves = per_run(case, model)
    for name in case.per_weight:
        leaves[name] = {
            n: (case.settings[name] * torch.linspace(0.5, 1.5, p.numel()).double().reshape(p.shape)).requires_grad_()
            for n, p in model.named_parameters()
        }
    return leaves


KINDS = {"per run": per_run, "per step": per_step, "per weight": per_weight}


def flat(leaves):
    return [t for value in leaves.values() for t in (value.values() if isinstance(value, dict) else [value])]


def read(leaves, parameter, step):
    chosen = {name: value[parameter] if isinstance(value, dict) else value for name, value in leaves.items()}
    return {name: value[step] if value.shape == (STEPS,) and not isinstance(leaves[name], dict) else value
            for name, value in chosen.items()}  # fmt: skip


@functools.cache
def by_reference(name, kind):
    """Trained weights, and the gradients by all leaves and by the initial weights, by autograd through the whole run."""
    case = CASES[name]
    model, x, y = task(case)
    leaves = KINDS[kind](case, model)
    start = dict(model.named_parameters())
    weights, states = dict(start), {n: {z: torch.zeros_like(p) for z in case.states} for n, p in start.items()}
    for t in range(STEPS):
        value = F.cross_entropy(functional_call(model, weights, x[t]), y[t])
        gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        after = {}
        for (n, w), g in zip(weights.items(), gradients, strict=True):
            after[n], states[n] = case.step(read(leaves, n, t), t, g, w, states[n])
        weights = after
    inputs = [*flat(leaves), *start.values()]
    found = torch.autograd.grad(downstream(weights.values()), inputs, allow_unused=True)
    found = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]
    return [w.detach() for w in weights.values()], found, len(flat(leaves))


def by_train(name, kind, adjoint):
    case = CASES[name]
    model, x, y = task(case)
    leaves = KINDS[kind](case, model)
    trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=case.rule(**leaves), adjoint=adjoint)
    inputs = [*flat(leaves), *model.parameters()]
    found = torch.autograd.grad(downstream(trained.values()), inputs, allow_unused=True)
    return [w.detach() for w in trained.values()], found


def error(found, expected):
    scale = float(expected.norm())
    return float((found - expected).norm()) / scale if scale else float(found.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CASES)
def test_hypergradients_by_every_setting(name, strategy, kind):
    """Both are float64: a few steps of rounding, which roots of squares and their eps of 1e-3 amplify a thousand times."""
    weights, expected, count = by_reference(name, kind)
    trained, found = by_train(name, kind, STRATEGIES[strategy])
    assert max(error(w, e) for w, e in zip(trained, weights, strict=True)) < 1e-12
    if strategy == "forward mode":  # has none by the model's own weights
        found, expected = found[:count], expected[:count]
    assert all(bool(g.isfinite().all()) for g in found)
    assert max(error(f, e) for f, e in zip(found, expected, strict=True)) < 1e-9
    assert sum(not e.any() for e in expected) == len(CASES[name].without_effect)  # or there would be nothing to compare


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.by_torch])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_trajectory_is_that_of_torch(name, strategy):
    case = CASES[name]
    model, x, y = task(case)
    trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=case.rule(), adjoint=STRATEGIES[strategy])
    optimizer = case.by_torch(model.parameters(), **case.settings, **(case.options or {}))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(x, y)(model, step, None).backward()
        optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(trained[n].detach(), p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, True)])
def test_a_longer_trace_is_nearer_to_the_true_rule(momentum, nesterov):
    """The gradient counts by 1 - 2^-bits at once: four more bits bring the weights about 16 times nearer, at least 8 times."""
    model, x, y = task()

    def trained(rule):
        weights = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=rh.Snapshots())
        return torch.cat([w.detach().flatten() for w in weights.values()])

    true = trained(rh.SGD(0.1, momentum, nesterov=nesterov))
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov}
    distances = [error(trained(rh.TracedSGD(**options, trace_bits=bits)), true) for bits in (4, 8, 12)]
    assert distances[0] > 8 * distances[1] > 64 * distances[2] > 0


@pytest.mark.parametrize("name", CASES)
def test_float32_and_parameters_of_two_dtypes(name):
    """Gradients in the dtype of the setting, near those of float64: rounding of 6e-8 a step, amplified as above."""
    case = CASES[name]
    model, x, y = task(case)
    model[0].float()
    leaves = per_run(case, model)

    def loss(model, step, _):
        hidden = torch.tanh(model[0](x[step].float())).double()
        return F.cross_entropy(model[2](hidden), y[step])

    trained = rh.train(model, loss, range(STEPS), optimizer=case.rule(**leaves), adjoint=rh.Checkpoint())
    found = torch.autograd.grad(downstream([w.double() for w in trained.values()]), flat(leaves))
    _, expected, count = by_reference(name, "per run")
    assert max(error(f, e) for f, e in zip(found, expected[:count], strict=True)) < 1e-4


def test_neighbours_with_different_settings():
    """Parts of one vector, each under settings of its own, as if they were vectors of their own."""
    results = []
    for adjoint in STRATEGIES.values():
        model, x, y = task()
        rates, biases = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.02, 0.01))
        rule = RMSprop(lr={"*.bias": biases, "0.weight": 0.015, "*": rates}, eps=1e-3)
        trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=adjoint)
        results.append(torch.stack(torch.autograd.grad(downstream(trained.values()), [rates, biases])))
    assert all(error(other, results[0]) < 1e-9 for other in results[1:])
    assert results[0].all()


@pytest.mark.parametrize("adjoint", [rh.Neumann(60, lr=0.3), rh.ConjugateGradient(40, 1e-12)], ids=repr)
def test_implicit_gradients_read_the_decay_off_the_rule(adjoint):
    """A minimum depends on the weight decay, and on nothing else of an optimizer: as under SGD."""
    torch.manual_seed(1)
    x, y = torch.randn(30, 4).double(), torch.randn(30, 1).double()
    found = []
    for make in (rh.SGD, lambda **s: RMSprop(alpha=0.9, momentum=0.5, eps=1e-3, **s)):
        model = nn.Linear(4, 1).double()
        with torch.no_grad():  # at the minimum, from which no rule moves
            rows = torch.cat([x, torch.ones(30, 1).double()], 1)
            best = torch.linalg.solve(rows.T @ rows * 2 / 30 + 0.5 * torch.eye(5).double(), rows.T @ y * 2 / 30)
            model.weight.copy_(best[:4].T)
            model.bias.copy_(best[4])
        decay = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        rule = make(lr=1e-9, weight_decay=decay)
        trained = rh.train(model, lambda m, b, _: F.mse_loss(m(x), y), range(3), optimizer=rule, adjoint=adjoint)
        found.append(torch.autograd.grad(sum(w.square().sum() for w in trained.values()), decay)[0])
    assert found[0] != 0
    # The rate of 1e-9 leaves the weights within 1e-8 of the minimum.
    assert error(found[1], found[0]) < 1e-6


def test_root():
    s = torch.tensor([-1.0, 0.0, 9.0], requires_grad=True)
    (by,) = torch.autograd.grad(root(s).sum(), s)
    assert root(s).tolist() == [0.0, 0.0, 3.0]
    assert by.tolist() == [0.0, 0.0, pytest.approx(1 / 6)]


class Squared(Rule):
    """Says that it is linear."""

    states = {"v": 1}  # noqa: RUF012
    settings = {"lr": SettingSpec(0.1), "momentum": SettingSpec(0.9, high=1.0)}  # noqa: RUF012
    elementwise = linear = True

    def decay(self, h, t):
        return {"v": h.momentum}

    def increments(self, h, t, g, w, z):
        yield "v", g * g

    def update(self, h, t, z, logged):
        return h.lr * z["v"]


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda: RMSprop(rate=0.1), TypeError, "RMSprop: .*unexpected keyword argument 'rate'; its settings are lr, alpha"),
        (lambda: rh.SGD(), TypeError, "lr"),
        (lambda: RMSprop(alpha="0.9"), TypeError, "alpha: expected a number, a tensor or a dict"),
        (lambda: rh.TracedSGD(0.1, nesterov=True), ValueError, "momentum: expected a momentum above 0 with nesterov=True"),
        (lambda: rh.TracedSGD(0.1, 0.9), ValueError, r"momentum: expected momentum 0 without nesterov=True.*Use rh\.SGD"),
        (lambda: rh.TracedSGD(0.1, trace_bits=0), ValueError, "trace_bits: expected an integer from 1 to 16, got 0"),
        (lambda: rh.TracedSGD(0.1, trace_bits=4.0), TypeError, "trace_bits: expected an integer from 1 to 16, got 4.0"),
        (lambda: rh.SGD(0.1, 0.0, nesterov=True), ValueError, "nesterov: Nesterov momentum requires a momentum"),
        (lambda: rh.SGD(0.1, nesterov=1), TypeError, "nesterov: expected True or False, got 1"),
    ],
)
def test_arguments(make, error_type, message):
    with pytest.raises(error_type, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "adjoint", "error_type", "message"),
    [
        (RMSprop(alpha=1.5), rh.Snapshots(), ValueError, r"alpha: expected numbers in \[0, 1\], got 1.5"),
        (RMSprop(momentum=torch.full((4, 5), 0.9)), rh.Snapshots(), ValueError, "momentum: expected a tensor of shape"),
        (RMSprop(lr=-1.0), rh.Snapshots(), ValueError, "lr: expected numbers >= 0, got -1. To learn one"),
        (RMSprop(alpha=0.0), rh.Reversible(), ValueError, "optimizer: .*RMSprop to decay 's' by a factor from 2.-16 to 1, got 0"),
        (rh.SGD(0.1, 0.9, nesterov=True), rh.Reversible(), ValueError, "nesterov: .*cannot undo.*TracedSGD"),
        (Squared(), rh.Snapshots(), TypeError, "Squared: expected increments and update that are linear"),
        (CASES["Scaled"].rule(), rh.Neumann(3), ValueError, "adjoint: an implicit gradient expected an elementwise rule"),
        (CASES["AdamW"].rule(), rh.Neumann(3), ValueError, "adjoint: an implicit gradient expected an elementwise rule whose"),
        (RMSprop(lr=torch.tensor(0.1, requires_grad=True)), rh.DrMAD(), ValueError, "adjoint: DrMAD knows the states.*SGD alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(rule, adjoint, error_type, message):
    model, x, y = task()
    with pytest.raises(error_type, match=message):
        rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=adjoint)


def test_repr_shows_what_was_given():
    assert repr(RMSprop(0.1, eps={"*": 1e-6})) == (
        "RMSprop(lr=0.1, alpha=0.99, momentum=0.9, eps={'*': 1e-06}, weight_decay=0.0)"
    )
    assert repr(rh.SGD(0.1, nesterov=True)) == "SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=True)"
