"""Any rule undone: its hypergradients, its bits, and torch's operations against the compiled program."""

from __future__ import annotations

import math

import pytest
import torch
from rules.shipped_rules import CASES
from rules.test_rules import KINDS, STEPS, by_reference, by_train, downstream, error, flat, loss_of, per_run, task
from rules.user_rules import RMSprop

import reversible_hypergrad as rh

# By its program, or by its functions.
UNDONE = [name for name, case in CASES.items() if case.reversible]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNDONE)
def test_hypergradients_by_every_setting(name, kind):
    """Integers of 51 bits and more round a step to 4e-16 of its largest number; as among floats, roots amplify that."""
    weights, expected, _ = by_reference(name, kind)
    trained, found = by_train(name, kind, rh.Reversible())
    assert max(error(w, e) for w, e in zip(trained, weights, strict=True)) < 1e-10
    assert max(error(f, e) for f, e in zip(found, expected, strict=True)) < 1e-7


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("name", UNDONE)
def test_the_run_is_undone_to_the_last_bit(name, segments):
    case = CASES[name]
    model, x, y = task(case)
    leaves = per_run(case, model)
    adjoint = rh.Reversible(segments=segments)
    trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=case.rule(**leaves), adjoint=adjoint)
    torch.autograd.grad(downstream(trained.values()), flat(leaves))
    assert trained.report.restored
    assert trained.report.checks == STEPS


@pytest.mark.parametrize("name", UNDONE)
def test_32_bits(name):
    """Quanta of 2^-26 of a tensor's largest number, and float32: a model of float64 sees rounding of some 1e-7 a step."""
    weights, expected, _ = by_reference(name, "per run")
    trained, found = by_train(name, "per run", rh.Reversible(state_bits=32))
    assert max(error(w, e) for w, e in zip(trained, weights, strict=True)) < 1e-4
    assert max(error(f, e) for f, e in zip(found, expected, strict=True)) < 3e-3


class Uncompiled(rh.SGD):
    program = ""


@pytest.mark.parametrize("state_bits", [64, 32])
def test_operations_have_the_bits_of_the_program(state_bits):
    """Weights and hashes on the way back: a schedule, dampening and decay, a value per weight."""
    found = []
    for make in (rh.SGD, Uncompiled):
        model, x, y = task()
        decays = {n: torch.linspace(0.0, 0.1, p.numel()).double().reshape(p.shape) for n, p in model.named_parameters()}
        momenta = torch.linspace(0.3, 0.99, STEPS).double()
        rule = make(0.1, momenta, 0.3, decays)
        adjoint = rh.Reversible(state_bits=state_bits)
        trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=adjoint)
        gradients = torch.autograd.grad(downstream(trained.values()), list(model.parameters()))
        assert trained.report.restored
        found.append((list(trained.values()), gradients, trained.report.information_bytes))
    (weights, gradients, size), (others, other_gradients, other_size) = found
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    assert size == other_size
    # The adjoint's vectors are rounded elsewhere: float64 here, with sums and products in another order.
    assert max(error(a, b) for a, b in zip(gradients, other_gradients, strict=True)) < 1e-12


@pytest.mark.parametrize(("nesterov", "bits"), [(False, 4.0), (True, 4.0 + math.log2(1 / 0.9))])
def test_a_trace_costs_its_bits(nesterov, bits):
    """Per weight and step, in a tensor whose bits fill their bytes."""
    model = torch.nn.Linear(64, 8, bias=False)
    rule = rh.TracedSGD(0.01, 0.9 if nesterov else 0.0, nesterov=nesterov)
    steps = 200
    trained = rh.train(model, lambda m, x, _: m(x).square().mean(), torch.randn(steps, 4, 64), optimizer=rule)
    trained["weight"].sum().backward()
    report = trained.report
    assert report.restored
    assert report.limit_bits == pytest.approx(bits)
    # A state's bits come whole: one halving more or less of 512 weights in 200 steps, and none before it is not zero.
    assert report.information_bits == pytest.approx(bits, abs=0.05)


def test_a_weight_that_never_moves_is_restored_too():
    """Third input: gradients of 0 for ever, under a root of 0."""
    model, x, y = task()
    alpha = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    before = model[0].weight.detach().clone()
    rule = RMSprop(lr=0.01, alpha=alpha, eps=1e-3)
    trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=rh.Reversible())
    assert torch.equal(trained["0.weight"][:, 2], before[:, 2])
    downstream(trained.values()).backward()
    assert alpha.grad.isfinite()
    assert torch.equal(model[0].weight.grad[:, 2], _slope(before)[:, 2])


def _slope(w):
    w = w.clone().requires_grad_()
    return torch.autograd.grad(downstream([w]), w)[0]
