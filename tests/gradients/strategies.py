"""Every exact strategy, and a run of each under a rule, to be compared with the unrolled one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import unrolled
from models import problem, validation

import reversible_hypergrad as rh

EXACT = {
    "reversible": rh.Reversible(),
    "reversible, 3 segments": rh.Reversible(segments=3),
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(every=4),
    "tree": rh.RecursiveCheckpoint(),
    "unroll": rh.Unroll(),
    "forward mode": rh.ForwardMode(force=True, chunk=64),
}
RULES = {
    "SGD": (lambda lr: rh.SGD(lr=lr, momentum=0.9), lambda lr: unrolled.SGD(lr, 0.9)),
    "AdamW": (
        lambda lr: rh.AdamW(lr=lr / 5, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1),
        lambda lr: unrolled.AdamW(lr / 5, 0.9, 0.95, 1e-4, 0.1),
    ),
}

# As in tests/adjoints/test_exact_strategies.py: plain floats and the oracle differ by rounding, 1e-16 a step, which training and
# the way back may amplify a thousand times; fixed point rounds velocities to 7e-15 times the momentum's denominator.
TOLERANCES = {name: 1e-9 if "reversible" in name else 1e-11 for name in EXACT}
STEPS = 8


def leaf(values, dtype=torch.float64):
    return torch.as_tensor(values, dtype=dtype).clone().requires_grad_()


def task(name="mlp", dtype=torch.float64):
    """A model, and a loss of indices with a penalty that is learned."""
    model, x, y = problem(name, dtype)

    def loss(model, index, log_l2):
        penalty = log_l2.exp() * sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(x[index]), y[index]) + penalty

    return model, loss


class Results:
    """Weights, and gradients by all that is learned and then by the initial weights."""

    def __init__(self, model, trained, learned):
        leaves = [*learned, *(p for p in model.parameters() if p.requires_grad)]
        found = torch.autograd.grad(validation(model, trained), leaves, allow_unused=True)
        self.trained, self.count = trained, len(learned)
        self.gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def by_train(rule, batches, adjoint, limit=None, clip=None, name="mlp", dtype=torch.float64, steps=STEPS, **settings):
    """``clip`` makes a clip of ``limit``, which is learned if it requires grad."""
    model, loss = task(name, dtype)
    lr, log_l2 = leaf(0.1, dtype), leaf(-4.0, dtype)
    if clip is not None:
        settings["clip"] = clip(limit)
    optimizer = RULES[rule][0](lr)
    trained = rh.train(
        model, loss, batches, steps=steps, optimizer=optimizer, hyperparameters=log_l2, adjoint=adjoint, seed=3, **settings
    )
    learned = [limit] if getattr(limit, "requires_grad", False) else []
    return Results(model, trained, [*learned, lr, log_l2])


def by_unroll(rule, micro_batches, limit=None, clip=None, name="mlp", steps=STEPS):
    model, loss = task(name)
    lr, log_l2 = leaf(0.1), leaf(-4.0)
    trained = unrolled.unrolled(
        model,
        loss,
        micro_batches,
        steps=steps,
        optimizer=RULES[rule][1](lr),
        clip=clip(limit) if clip else None,
        hyperparameters=log_l2,
        seed=3,
    )
    learned = [limit] if getattr(limit, "requires_grad", False) else []
    return Results(model, trained, [*learned, lr, log_l2])


def assert_agree(found, expected, strategy):
    """Forward mode has no gradients by the model's own weights."""
    count = found.count if strategy == "forward mode" else len(found.gradients)
    for a, b in list(zip(found.gradients, expected.gradients, strict=True))[:count]:
        assert float((a - b).norm()) <= TOLERANCES[strategy] * float(b.norm()), (a, b)
    assert found.trained.report.restored
