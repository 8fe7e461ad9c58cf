"""A hundred thousand steps."""

from __future__ import annotations

import pytest
import torch

import reversible_hypergrad as rh

STEPS = 100_000


@pytest.mark.slow
def test_a_hundred_thousand_steps_in_segments():
    """Exact, one more forward run, and under 0.35 kB per weight at momentum 0.9, all that is kept counted."""
    torch.manual_seed(0)
    model = torch.nn.Linear(60, 160).double()
    x, y = torch.randn(50, 4, 60, dtype=torch.float64), torch.randn(50, 4, 160, dtype=torch.float64)
    gradients, reports = [], []
    for adjoint in (rh.Reversible(segments="auto"), rh.Checkpoint()):
        log_l2 = torch.tensor([-3.0, -4.0], dtype=torch.float64, requires_grad=True)
        trained = rh.train(
            model,
            lambda model, t, log_l2: (
                (model(x[t % 50]) - y[t % 50]).square().mean()
                + sum(a.exp() * p.square().sum() for a, p in zip(log_l2, model.parameters(), strict=True))
            ),
            lambda step: step,
            steps=STEPS,
            optimizer=rh.SGD(lr=0.05, momentum=0.9),
            hyperparameters=log_l2,
            adjoint=adjoint,
        )
        gradients += torch.autograd.grad(sum(w.square().sum() for w in trained.values()), log_l2)
        reports.append(trained.report)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=0.0)
    report = reports[0]
    assert report.restored
    assert 0.8 * STEPS < report.steps_again < STEPS
    # States between segments and a segment's bits trade one for the other: together they never pass the larger maximum by much.
    kept = report.state_bytes + max(report.information_bytes, report.kept_bytes) + report.log_bytes
    assert kept < 350 * report.weights
