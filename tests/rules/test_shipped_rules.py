"""What single rules of the library promise beside their formulas: bits, edges, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from rules.shipped_rules import SHIPPED, newton_schulz
from rules.test_rules import STEPS, downstream, error, loss_of, task
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.reversible.signs import joined, packed_signs, split, unpacked_signs
from reversible_hypergrad.rules import Rule, SettingSpec

REVERSIBLE = [name for name, case in SHIPPED.items() if case.reversible]
MATRICES = SHIPPED["rh.Muon"]


def trained(rule, model, x, y, adjoint=None):
    return rh.train(model, loss_of(x, y), range(STEPS), optimizer=rule, adjoint=adjoint or rh.Snapshots())


def undone(rule, model, loss, batches, **options):
    weights = rh.train(model, loss, batches, optimizer=rule, adjoint=rh.Reversible(**options))
    sum(w.sum() for w in weights.values()).backward()
    assert weights.report.restored
    return weights.report


@pytest.mark.parametrize("name", REVERSIBLE)
def test_its_bits(name):
    """Bits come whole: a slot has lost at most one more than its limit, which it owes, and one fewer. Where first gradients leave
    one bit of room above them (moments), that may be one more, once; signs have a byte per tensor and step of their own."""
    torch.manual_seed(0)
    model, steps = nn.Linear(64, 64, bias=False), 100
    report = undone(
        SHIPPED[name].rule(), model, lambda m, x, _: m(x).sin().square().mean(), torch.randn(steps, 4, 64), state_bits=64
    )
    slots = len(SHIPPED[name].states) + 1
    assert report.limit_bits - slots / steps <= report.information_bits <= report.limit_bits + (2 * slots) / steps + 8 / 4096


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("adjoint", [rh.Snapshots(), rh.Checkpoint(), rh.RecursiveCheckpoint()], ids=lambda x: type(x).__name__)
def test_initial_weights_where_no_setting_is_learned(name, adjoint):
    """A rule may need its states in some steps only, as RAdam does when rho has grown above 5."""
    found = []
    for one in (adjoint, rh.Unroll()):
        model, x, y = task(SHIPPED[name])
        weights = trained(SHIPPED[name].rule(), model, x, y, one)
        found.append(torch.autograd.grad(downstream(weights.values()), list(model.parameters())))
    assert error(*(torch.cat([g.flatten() for g in own]) for own in found)) < 1e-9  # rounding, through roots and eps of 1e-3


class Gained(nn.Module):
    """A parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x):
        return self.gain * x


@pytest.mark.parametrize("name", [name for name in REVERSIBLE if not SHIPPED[name].matrices])
def test_a_parameter_without_dimensions(name):
    """64-bit integers hold 40 bits of a step's increments."""
    found = []
    for adjoint in (rh.Reversible(), rh.Unroll()):
        model = Gained()
        weights = rh.train(
            model, lambda m, b, _: (m(b) - 1).square().mean(), range(1, 6), optimizer=SHIPPED[name].rule(), adjoint=adjoint
        )
        found.append(torch.autograd.grad(weights["gain"], model.gain)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)


def test_zeros_among_the_signs_cost_a_second_bit():
    """In the tensor and the steps that have them: those of a weight without gradient."""
    sizes = []
    for dead in (False, True):
        model, x, y = task()
        if not dead:
            x[..., 2] = 1.0
        sizes.append(undone(rh.Lion(0.01), model, loss_of(x, y), range(STEPS), verify_every=4).information_bytes)
    assert sizes[1] - sizes[0] == STEPS * 3  # the first weight matrix has 20 weights


@pytest.mark.parametrize("segments", [1, 3])
def test_signs_go_to_the_store_of_planes(segments, tmp_path):
    model, x, y = task()
    rule = rh.Lion(0.05, betas=(0.7, 0.5), weight_decay=2.0)  # bits of all slots in many steps
    undone(rule, model, loss_of(x, y), range(STEPS), segments=segments, buffer=tmp_path)


def test_planes_of_signs():
    signs = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, -1.0, 0.0, 0.0, 1.0])
    some, none = packed_signs(signs, 2), packed_signs(signs.abs() + 1, 2)
    assert some.tolist() == [0b00110010, 0, 0b11000100, 0]
    assert none.tolist() == [0, 0]
    assert torch.equal(unpacked_signs(some, 9, 2, torch.float32), signs)
    assert torch.equal(unpacked_signs(none, 9, 2, torch.float64), torch.ones(9).double())
    pieces = [some, none, some[:0]]
    assert [piece.tolist() for piece in split(joined(pieces, [2, 2, 5]), [2, 2, 5])] == [piece.tolist() for piece in pieces]


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
def test_muon_is_torchs_in_bfloat16(adjust):
    """A number in float64 would have to lie within 1e-15 of the middle between two of bfloat16 to be rounded to the other."""
    model, x, y = task(MATRICES)
    options = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    weights = trained(rh.Muon(**options, ns_dtype=torch.bfloat16), model, x, y)
    optimizer = torch.optim.Muon(model.parameters(), **options, nesterov=False)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(x, y)(model, step, None).backward()
        optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(weights[n].detach(), p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adjoint", [rh.Unroll(), rh.Reversible(), rh.Reversible(32), rh.ForwardMode()], ids=repr)
def test_derivatives_through_bfloat16_are_those_of_the_iteration(adjoint):
    """Two steps: the derivative by the learning rate is the sum of torch's updates, that by the momentum the iteration's own."""
    start = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.1, 0.6)]
    model = nn.Linear(5, 3, bias=False).double()

    def loss(m, x, _):  # its gradients point in another direction at every step
        return (m.weight * x).sum()

    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    rule = rh.Muon(leaves[0], leaves[1], weight_decay=0.0, ns_dtype=torch.bfloat16)
    weights = rh.train(model, loss, x, optimizer=rule, initial={"weight": start}, adjoint=adjoint)
    found = torch.autograd.grad((weights["weight"] * start).sum(), leaves)
    v = (1 - leaves[1]) * x[0]
    exact = [newton_schulz(v), newton_schulz(leaves[1] * v + (1 - leaves[1]) * x[1])]
    (by_momentum,) = torch.autograd.grad(-0.1 * ((exact[0] + exact[1]) * start).sum(), leaves[1])
    by_lr = (weights["weight"].detach() - start).mul(start).sum() / 0.1
    # 32-bit state and float32 arithmetic: 1e-7 a step; bfloat16's own derivative would be 4e-3 off.
    tolerance = 1e-5 if "32" in repr(adjoint) else 1e-9
    assert error(found[0], by_lr) < tolerance
    assert error(found[1], by_momentum) < tolerance


def test_a_longer_trace_is_nearer_to_nesterovs_muon():
    """As for TracedSGD: four more bits bring the weights about 16 times nearer, at least 8 times."""
    model, x, y = task(MATRICES)
    options = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.0}
    weights = dict(model.named_parameters())
    states = {n: torch.zeros_like(w) for n, w in weights.items()}
    for t in range(STEPS):
        value = nn.functional.cross_entropy(torch.func.functional_call(model, weights, x[t]), y[t])
        gradients = torch.autograd.grad(value, list(weights.values()))
        for (n, w), g in zip(list(weights.items()), gradients, strict=True):
            states[n] = 0.8 * states[n] + 0.2 * g
            scale = max(1, w.shape[0] / w.shape[1]) ** 0.5
            weights[n] = (w - 0.02 * scale * newton_schulz(0.2 * g + 0.8 * states[n])).detach().requires_grad_()
    true = torch.cat([w.detach().flatten() for w in weights.values()])
    distances = []
    for bits in (4, 8, 12):
        found = trained(rh.Muon(**options, nesterov=True, trace_bits=bits), model, x, y).values()
        distances.append(error(torch.cat([w.detach().flatten() for w in found]), true))
    assert distances[0] > 8 * distances[1] > 64 * distances[2] > 0


@pytest.mark.parametrize("make", [lambda: rh.LARS(1.0, eps=0.0), lambda: rh.LAMB(0.01), lambda: rh.Lion(0.01)])
def test_tensors_that_begin_as_zeros(make):
    """They move, and derivatives are finite, where a norm is 0, and where a gradient is."""
    model, x, y = task()
    with torch.no_grad():
        for bias in (model[0].bias, model[2].bias):
            bias.zero_()
        model[2].weight[:] = 0.0  # so that the first layer's first gradient is 0
    weights = trained(make(), model, x, y, rh.Reversible())
    assert weights["2.bias"].any()
    assert weights["2.weight"].any()
    downstream(weights.values()).backward()
    assert weights.report.restored
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("adjoint", [rh.Snapshots(), rh.Reversible(64)], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda eps: rh.RMSprop(1e-3, eps=eps),
        lambda eps: rh.RMSprop(1e-3, eps=eps, centered=True),
        lambda eps: rh.RAdam(1e-3, betas=(0.9, 0.9), eps=eps),
        lambda eps: rh.LAMB(1e-3, eps=eps),
    ],
)
def test_weights_whose_root_is_below_eps_are_counted(make, adjoint):
    """Those of the dead input, five; all of them for a large eps; and none in a step that does not divide."""
    model, x, y = task()
    every = sum(p.numel() for p in model.parameters())
    assert trained(make(1e-6), model, x, y, adjoint).report.weights_below_eps == 5
    assert trained(make(1e6), model, x, y, adjoint).report.weights_below_eps == every
    never = rh.RAdam(1e-3, betas=(0.9, 0.5), eps=1e6)  # so short a mean is not divided by
    assert trained(never, model, x, y, adjoint).report.weights_below_eps == 0


def test_centered_rmsprop_where_gradients_do_not_vary():
    """The variance is the mean square times alpha^n, n being the steps, until rounding takes over: a step is no longer than by
    2^-10 of the root mean square, and of about the same length in integers and in floats."""
    model, steps = nn.Linear(3, 3, bias=False), 40
    found = []
    for adjoint in (rh.Snapshots(), rh.Reversible(32), rh.Reversible(64)):
        rule = rh.RMSprop(1e-3, alpha=0.25, momentum=0.1, eps=0.0, centered=True)
        weights = rh.train(model, lambda m, x, _: m(x).sum(), torch.ones(steps, 1, 3), optimizer=rule, adjoint=adjoint)
        found.append(weights["weight"].detach() - model.weight.detach())
    for moved in found:
        # From the tenth step on the part is 2^-20: steps of lr * 2^10 / (1 - momentum).
        torch.testing.assert_close(moved, torch.full_like(moved, -30 * 1.024 / 0.9), rtol=0.1, atol=0.0)


class Half(Rule):
    """Keeps what is no sign."""

    states = {"v": 1}  # noqa: RUF012
    settings = {"lr": SettingSpec(0.1)}  # noqa: RUF012
    elementwise = True

    def decay(self, h, t):
        return {"v": 0.5}

    def signs(self, h, t, g, w, z):
        return torch.sign(g) / 2

    def increments(self, h, t, g, w, z):
        yield "v", g

    def update(self, h, t, z, logged):
        return h.lr * logged


def test_what_is_no_sign_is_refused():
    model, x, y = task()
    with pytest.raises(ValueError, match=r"expected Half.signs to return -1, 0 and 1 alone. Use torch.sign"):
        trained(Half(), model, x, y, rh.Reversible())


def test_signs_or_logged_numbers():
    with pytest.raises(TypeError, match=r"Both: expected signs\(\) or logged\(\), got both"):
        type("Both", (Half,), {"logged": lambda self, h, t, w, z: 1.0})


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda: rh.RAdam(betas=0.9), TypeError, r"betas: expected two numbers or tensors, such as \(0.9, 0.99\), got 0.9"),
        (lambda: rh.Lion(betas=(0.9,)), TypeError, "betas: expected two numbers"),
        (lambda: rh.RAdam(decoupled_weight_decay=1), TypeError, "decoupled_weight_decay: expected True or False, got 1"),
        (lambda: rh.RMSprop(centered=None), TypeError, "centered: expected True or False, got None"),
        (lambda: rh.LARS(), TypeError, "lr"),
        (lambda: rh.RMSprop(alpha="0.9"), TypeError, "alpha: expected a number, a tensor or a dict"),
        (lambda: rh.Muon(ns_steps=0), ValueError, "ns_steps: expected an integer from 1 to 99, got 0"),
        (lambda: rh.Muon(ns_steps=5.0), TypeError, "ns_steps: expected an integer from 1 to 99, got 5.0"),
        (lambda: rh.Muon(ns_coefficients=(1.0, 2.0)), ValueError, r"ns_coefficients: expected three numbers, got \(1.0, 2.0\)"),
        (lambda: rh.Muon(eps=0.0), ValueError, "eps: expected a number > 0, got 0.0"),
        (lambda: rh.Muon(adjust_lr_fn="rms"), ValueError, "adjust_lr_fn: expected None, 'original' or .*, got 'rms'"),
        (lambda: rh.Muon(nesterov=1), TypeError, "nesterov: expected True or False, got 1"),
        (lambda: rh.Muon(trace_bits=17), ValueError, "trace_bits: expected an integer from 1 to 16, got 17"),
        (lambda: rh.Muon(ns_dtype=torch.float16), ValueError, "ns_dtype: expected torch.bfloat16.*got torch.float16"),
    ],
)  # fmt: skip
def test_arguments(make, error_type, message):
    with pytest.raises(error_type, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (rh.RMSprop(momentum=0.0), r"momentum: .* expected numbers in \(0, 1\], got 0.*contains the gradient.*rh\.Checkpoint"),
        (rh.LAMB(weight_decay=0.1), r"weight_decay: rh.Reversible\(\) expected 0 with rh.LAMB.*into the loss.*rh\.Checkpoint"),
        (rh.LAMB(weight_decay=torch.tensor(0.0, requires_grad=True)), "weight_decay: .*expected 0 with rh.LAMB"),
        (rh.Lion(betas=(0.9, 0.0)), r"beta2: expected numbers in \[1.52588e-05, 1\), got 0"),
        (rh.Lion(lr=1.0, weight_decay=1.0), "expected Lion to decay 'weight' by a factor from 2.-16 to 1, got 0"),
        (rh.Lion(lr=torch.full((5, 4), 0.1)), r"lr: expected a tensor of shape \(\) or"),
        (rh.RAdam(lr=torch.full((5, 4), 0.1), decoupled_weight_decay=True), r"lr: expected a tensor of shape \(\) or"),
        (rh.Muon(), r"rh.Muon expected matrices, got '0.bias' of shape \(5,\).*rh.PerParameter\({'0.bias': rh.AdamW\(\)"),
        (rh.LARS(lr=-1.0), "lr: expected numbers >= 0, got -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(rule, message):
    model, x, y = task()
    with pytest.raises(ValueError, match=message):
        trained(rule, model, x, y, rh.Reversible())


def test_rmsprop_without_momentum_trains_in_floats():
    """As torch's default."""
    model, x, y = task()
    weights = trained(rh.RMSprop(0.01, momentum=0.0), model, x, y, rh.Checkpoint())
    optimizer = torch.optim.RMSprop(model.parameters(), 0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(x, y)(model, step, None).backward()
        optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(weights[n].detach(), p.detach(), rtol=1e-12, atol=1e-14)
