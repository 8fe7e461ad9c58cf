"""A run whose gradients outgrow the room that integers have at first. Used by tests/training and tests/gpu."""

from __future__ import annotations

import torch

import reversible_hypergrad as rh
from reversible_hypergrad.problem.report import Report

STEPS = 500


def hypergradients(state_bits: int, segments: int, device: str) -> tuple[list[torch.Tensor], Report]:
    """By a learning rate per step and the initial weights. Gradients grow 200,000-fold, and 5-fold between two looks."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.randn(700, generator=generator).to(device))
    batches = torch.randn(STEPS, 700, generator=generator).to(device)
    log_lr = torch.full((STEPS,), -13.0, requires_grad=True)
    trained = rh.train(
        model,
        lambda model, batch, _: (model.w * batch).sum() + 0.5 * model.w.square().sum(),
        lambda step: 1.025**step * batches[step],
        steps=STEPS,
        optimizer=rh.SGD(lr=log_lr.exp(), momentum=0.9),
        adjoint=rh.Reversible(state_bits, segments=segments),
    )
    found = torch.autograd.grad(trained["w"].square().sum(), [log_lr, model.w])
    return [g.cpu() for g in found], trained.report


def check(state_bits: int, segments: int, device: str) -> None:
    """There and back, and near what a run in float64 has. Room is made at looks, which costs bits beyond those of the decay."""
    found, report = hypergradients(state_bits, segments, device)
    assert report.restored
    if segments == 1:  # else what is kept at a time is of one segment
        assert report.information_bits > report.limit_bits
    expected, _ = hypergradients(64, 1, "cpu")
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
