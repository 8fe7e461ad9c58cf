"""Weights of 16 bits, settings with more or fewer digits than the weights, and parameters of several dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kinds import KINDS, always, by_train, error, leaf, penalty_loss, with_settings
from models import batch_indices, problem, validation
from torch import nn

import reversible_hypergrad as rh

STEPS = 12
STATES = [rh.Snapshots(), rh.Checkpoint(), rh.RecursiveCheckpoint(), rh.RecursiveCheckpoint(slots=3), rh.Truncated(STEPS)]
GRAPHS = [rh.Unroll(), rh.ForwardMode(force=True, chunk=64)]
MODEL_GRADIENTS = {torch.bfloat16: 0.2, torch.float16: 0.03}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sixteen_bits(dtype, nesterov):
    """Kept states give the same bits. Others round elsewhere: 2^-9 a step and number, or 2^-12, amplified by training."""
    make = with_settings(lr=always(0.1), momentum=always(0.75), weight_decay=always(0.0625), nesterov=nesterov)
    expected = by_train("mlp", make, dtype, STATES[0], STEPS)
    assert all(g.dtype == dtype and bool(g.isfinite().all()) and bool(g.any()) for g in expected.grads)
    for adjoint in STATES[1:]:
        found = by_train("mlp", make, dtype, adjoint, STEPS)
        assert all(torch.equal(w, expected.trained[n]) for n, w in found.trained.items())
        assert all(torch.equal(f, e) for f, e in zip(found.grads, expected.grads, strict=True))
    for adjoint in GRAPHS:
        found = by_train("mlp", make, dtype, adjoint, STEPS)
        assert all(w.dtype == dtype for w in found.trained.values())
        assert max(error(f, e) for f, e in zip(found.of_leaves, expected.of_leaves, strict=True)) < MODEL_GRADIENTS[dtype]
    precise = by_train("mlp", make, torch.float64, STATES[0], STEPS)
    assert max(error(f, e) for f, e in zip(expected.grads, precise.grads, strict=True)) < MODEL_GRADIENTS[dtype]


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        pytest.param(torch.bfloat16, torch.float32, id="bfloat16, settings float32"),
        pytest.param(torch.float32, torch.float64, id="float32, settings float64"),
        pytest.param(torch.float32, torch.bfloat16, id="float32, settings bfloat16"),
        pytest.param(torch.float64, torch.float16, id="float64, settings float16"),
    ],
)
@pytest.mark.parametrize("kind", ["lr per weight", "dampening, decay per weight", "momentum per step"])
def test_settings_of_another_dtype(kind, weights, settings):
    """Gradients have the setting's dtype, trained weights the model's."""
    results = []
    for adjoint in (rh.Snapshots(), rh.Checkpoint(), *GRAPHS, rh.Reversible()):
        model, x, y = problem("mlp", weights)
        given, hyperparameters, _, _, leaves = KINDS[kind](model, x, y, settings, STEPS)
        constants = {"l2": hyperparameters["l2"].detach(), "more": [hyperparameters["more"][0].detach().to(weights)]}
        trained = rh.train(
            model,
            penalty_loss(x, y),
            batch_indices,
            steps=STEPS,
            optimizer=rh.SGD(**given),
            hyperparameters=constants,
            adjoint=adjoint,
        )
        grads = torch.autograd.grad(validation(model, trained), leaves)
        assert all(w.dtype == weights for w in trained.values())
        assert all(g.dtype == settings for g in grads)
        results.append(torch.cat([g.double().reshape(-1) for g in grads]))
    coarsest = max(torch.finfo(weights).eps, torch.finfo(settings).eps)
    assert torch.equal(results[0], results[1])
    assert all(error(other, results[0]) < max(20 * coarsest, 1e-9) for other in results[2:])


class Mixed(nn.Module):
    """One layer in float64 between two in float32."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8).double(), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)).double())).float())


def test_parameters_of_several_dtypes():
    results = []
    for adjoint in (*STATES, *GRAPHS):
        torch.manual_seed(0)
        model, x, y = Mixed(), torch.randn(24, 6), torch.randint(3, (24,))
        lr, momentum, decay = leaf(0.1, torch.float64), leaf(0.8, torch.float64), leaf(0.01, torch.float64)
        trained = rh.train(
            model,
            lambda model, index, h, x=x, y=y: F.cross_entropy(model(x[index]), y[index]),
            batch_indices,
            steps=STEPS,
            optimizer=rh.SGD(lr, momentum, weight_decay=decay),
            adjoint=adjoint,
        )
        sum(w.square().sum().double() for w in trained.values()).backward()
        results.append(torch.stack([lr.grad, momentum.grad, decay.grad]))
        assert trained["b.weight"].dtype == torch.float64
        assert trained["a.weight"].dtype == torch.float32
    assert all(torch.equal(r, results[0]) for r in results[: len(STATES)])
    assert max(error(r, results[0]) for r in results) < 1e-5


def test_transposed_weights():
    """Memory order is not logical order in any of them."""
    results = []
    for adjoint in (rh.Reversible(), rh.Snapshots(), rh.Checkpoint(), *GRAPHS):
        model, x, y = problem("mlp", torch.float64)
        for layer in (model[0], model[2]):
            layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
        given, hyperparameters, _, loss, leaves = KINDS["lr per weight"](model, x, y, torch.float64, STEPS)
        given["weight_decay"] = KINDS["weight decay per weight"](model, x, y, torch.float64, STEPS)[0]["weight_decay"]
        leaves = [*leaves, *given["weight_decay"].values()]
        trained = rh.train(
            model, loss, batch_indices, steps=STEPS, optimizer=rh.SGD(**given), hyperparameters=hyperparameters, adjoint=adjoint
        )
        results.append(torch.autograd.grad(validation(model, trained), leaves))
    for found in results:
        assert max(error(f, e) for f, e in zip(found, results[1], strict=True)) < 1e-9
