"""Several rules in one run: their steps, hypergradients by the settings of each, and what cannot be."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
import torch.nn.functional as F
from rules.shipped_rules import CASES, SHIPPED
from rules.test_rules import STEPS, downstream, error, loss_of, task
from torch import nn
from torch.func import functional_call

import reversible_hypergrad as rh

# Rules by pattern: by operations beside a program, one that is not elementwise beside one with signs, and Muon as it is used.
RUNS = {
    "Muon and AdamW": {"0.weight": "rh.Muon", "*": "rh.AdamW"},
    "SGD and Lion": {"*.weight": "SGD", "*": "rh.Lion"},
    "LAMB, RMSprop and a trace": {"0.*": "rh.LAMB", "2.bias": "rh.RMSprop", "*": "traced"},
}
EXACT = {
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "recursive checkpoint": rh.RecursiveCheckpoint(slots=3),
    "unroll": rh.Unroll(),
    "forward mode": rh.ForwardMode(chunk=32, force=True),
    "reversible": rh.Reversible(),
    "reversible, 3 segments": rh.Reversible(segments=3),
}


def leaves_of(run):
    """By pattern and setting."""
    return {
        (key, setting): torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for key, name in RUNS[run].items()
        for setting, value in CASES[name].settings.items()
    }


def rule_of(run, leaves):
    def own(key):
        return {setting: leaf for (of, setting), leaf in leaves.items() if of == key}

    return rh.PerParameter({key: CASES[name].rule(**own(key)) for key, name in RUNS[run].items()})


def by_reference(run):
    model, x, y = task()
    leaves, start = leaves_of(run), dict(model.named_parameters())
    keys = {n: next(key for key in RUNS[run] if fnmatchcase(n, key)) for n in start}  # which here is the first
    cases = {n: CASES[RUNS[run][key]] for n, key in keys.items()}
    weights, states = dict(start), {n: {z: torch.zeros_like(p) for z in cases[n].states} for n, p in start.items()}
    for t in range(STEPS):
        value = F.cross_entropy(functional_call(model, weights, x[t]), y[t])
        gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        after = {}
        for (n, w), g in zip(weights.items(), gradients, strict=True):
            h = {setting: leaf for (key, setting), leaf in leaves.items() if key == keys[n]}
            after[n], states[n] = cases[n].step(h, t, g, w, states[n])
        weights = after
    inputs = [*leaves.values(), *start.values()]
    found = torch.autograd.grad(downstream(weights.values()), inputs, allow_unused=True)
    return [w.detach() for w in weights.values()], [
        torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)
    ]


@pytest.mark.parametrize("strategy", EXACT)
@pytest.mark.parametrize("run", RUNS)
def test_hypergradients_by_the_settings_of_each(run, strategy):
    """Tolerances as for one rule."""
    weights, expected = by_reference(run)
    model, x, y = task()
    leaves = leaves_of(run)
    trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule_of(run, leaves), adjoint=EXACT[strategy])
    inputs = [*leaves.values(), *model.parameters()]
    found = torch.autograd.grad(downstream(trained.values()), inputs, allow_unused=True)
    fixed = strategy.startswith("reversible")
    assert trained.report.restored
    assert max(error(w.detach(), e) for w, e in zip(trained.values(), weights, strict=True)) < (1e-10 if fixed else 1e-12)
    count = len(leaves) if strategy == "forward mode" else len(found)  # it has none by the model's own weights
    pairs = list(zip(found, expected, strict=True))[:count]
    assert max(error(f, e) for f, e in pairs) < (1e-7 if fixed else 1e-9)
    assert sum(bool(e.any()) for _, e in pairs) == len(pairs) - sum(len(CASES[n].without_effect) for n in RUNS[run].values())


def test_muon_and_adamw_are_torchs():
    model, x, y = task()
    muon, adamw = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.1}, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    rule = rh.PerParameter({"*.weight": rh.Muon(**muon, ns_dtype=torch.bfloat16), "*.bias": rh.AdamW(**adamw)})
    trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=rh.Snapshots())
    optimizers = [
        torch.optim.Muon([model[0].weight, model[2].weight], **muon, nesterov=False),
        torch.optim.AdamW([model[0].bias, model[2].bias], **adamw),
    ]
    for step in range(STEPS):
        model.zero_grad()
        loss_of(x, y)(model, step, None).backward()
        for optimizer in optimizers:
            optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(trained[n].detach(), p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("state_bits", [64, 32])
def test_undone_and_its_bits(state_bits):
    """Those of each rule by its share of the weights; whole bits, and one where numbers outgrow their integers: in 60 steps."""
    torch.manual_seed(0)
    model, steps = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Tanh(), nn.Linear(64, 16, bias=False)), 60
    rule = rh.PerParameter({"0.weight": rh.Muon(momentum=0.5, weight_decay=0.0), "2.weight": rh.Lion(betas=(0.9, 0.25))})
    x = torch.randn(steps, 8, 32)
    trained = rh.train(
        model, lambda m, x, _: m(x).square().mean(), x, optimizer=rule, adjoint=rh.Reversible(state_bits=state_bits)
    )
    sum(w.sum() for w in trained.values()).backward()
    report = trained.report
    assert report.restored
    assert report.limit_bits == pytest.approx((2048 * 1 + 1024 * 3) / 3072)
    assert abs(report.information_bits - report.limit_bits) <= 4 / steps
    assert report.state_bytes == 2 * 3072 * state_bits // 8  # a state each, and the weights


def test_one_tensor_for_two_rules():
    """Its gradient is the sum; the rule that several parameters share is one."""
    model, x, y = task()
    adamw = SHIPPED["rh.AdamW"].rule()
    shared = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    apart = [torch.tensor(0.02, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def slopes(lrs, inputs, adjoint):
        rules = {"0.weight": rh.LARS(lrs[0]), "2.weight": rh.RMSprop(lrs[1]), "0.bias": adamw, "2.bias": adamw}
        trained = rh.train(model, loss_of(x, y), range(STEPS), optimizer=rh.PerParameter(rules), adjoint=adjoint)
        return torch.autograd.grad(downstream(trained.values()), inputs)

    for adjoint in (rh.Reversible(), rh.Snapshots()):
        (together,), each = slopes([shared, shared], [shared], adjoint), slopes(apart, apart, adjoint)
        assert all(each)
        assert error(together, each[0] + each[1]) < 1e-14


def test_a_rule_that_cannot_be_undone_is_named():
    model, x, y = task()
    rule = rh.PerParameter({"0.*": rh.Lion(), "2.*": rh.RMSprop(momentum=0.0)})
    with pytest.raises(ValueError, match=r"momentum: .*the update of RMSprop contains the gradient"):
        rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule)


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda: rh.PerParameter(rh.Lion()), TypeError, "rules: expected a dict from parameter names or globs to rules"),
        (lambda: rh.PerParameter({"*": 0.1}), TypeError, "rules: expected a dict"),
        (lambda: rh.PerParameter({"*": rh.PerParameter({"*": rh.Lion()})}), TypeError, "Put its rules in here"),
    ],
)
def test_arguments(make, error_type, message):
    with pytest.raises(error_type, match=message):
        make()


@pytest.mark.parametrize(
    ("rules", "adjoint", "message"),
    [
        ({"0.*": rh.Lion()}, None, "optimizer: no key matches the parameter '2.weight'"),
        ({"0.*": rh.Lion(), "*.bias": rh.Lion(), "*": rh.Lion()}, None, r"optimizer: .*'0.bias' is matched by '0.\*' and"),
        ({"3.*": rh.Lion(), "*": rh.Lion()}, None, r"optimizer: the key '3.\*' matches no trained parameter"),
        ({"*": rh.Muon()}, None, "rh.Muon expected matrices, got '0.bias'"),
        ({"0.*": rh.Lion({"2.bias": 0.1, "*": 0.2}), "*": rh.Lion()}, None, "lr: the key '2.bias' matches no trained parameter"),
        ({"0.*": rh.SGD(0.1), "*": rh.Lion()}, rh.Neumann(3), "adjoint: an implicit gradient expected an elementwise rule"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(rules, adjoint, message):
    model, x, y = task()
    with pytest.raises(ValueError, match=message):
        rh.train(model, loss_of(x, y), range(STEPS), optimizer=rh.PerParameter(rules), adjoint=adjoint)


def test_it_has_no_step_of_its_own():
    """For strategies that users write."""
    rule = rh.PerParameter({"*": rh.Lion()})
    for call in (lambda: rule.decay(None, 0), lambda: rule.increments(None, 0, *[None] * 3), lambda: rule.update(None, 0, {}, 0)):
        with pytest.raises(TypeError, match=r"must ask Problem.rule_of\(\)"):
            call()
