"""Gradient clipping and loss scaling under ReversibleSGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import digits_batch, frozen, mlp
from precision_problems import SCALES, check_loss_scaling
from torch.nn import functional as F

import reversible_hypergrad as rh


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_clipped_gradients_are_undone_by_the_same_clipping(kind: str) -> None:
    model = mlp()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.5, momentum=0.9)

    def closure_of(step: int) -> Callable[[], Any]:
        def closure() -> Any:
            optimizer.zero_grad()
            images, labels = digits_batch(step)
            loss = 100 * F.cross_entropy(model(images), labels)
            loss.backward()
            if kind == "norm":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            else:
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
            return loss

        return closure

    start = frozen(optimizer)
    for step in range(50):
        optimizer.step(closure_of(step))
    optimizer.rewind([closure_of(step) for step in reversed(range(50))])
    assert frozen(optimizer) == start


@pytest.mark.parametrize("dtype", SCALES, ids=str)
def test_loss_scaling_under_autocast(dtype: torch.dtype) -> None:
    check_loss_scaling(dtype, "cpu", frozen)
