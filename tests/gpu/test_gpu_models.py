"""Hypergradients on a GPU through every kind of model, against the unrolled run in float64 on the CPU."""

from __future__ import annotations

import pytest
import torch
from gpu_machine import DEVICE, GPU, whole_float32  # noqa: F401
from kinds import EVERYTHING, by_train, by_unroll, error
from models import MODELS

import reversible_hypergrad as rh

pytestmark = [*GPU, pytest.mark.usefixtures("whole_float32")]

STEPS = 30
RECURRENT = ("GRU", "LSTM")
# float64 has 16 digits; float32, with products in whole float32, 7, and training amplifies what is lost.
PRECISIONS = [pytest.param(torch.float64, 1e-9, id="float64"), pytest.param(torch.float32, 1e-4, id="float32")]


@pytest.fixture(autouse=True)
def cudnn_as_before():
    before = torch.backends.cudnn.enabled
    yield
    torch.backends.cudnn.enabled = before


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name, dtype, tolerance):
    """cuDNN's recurrent layers have no second derivative; torch's own have. Dropout draws other numbers on a GPU."""
    torch.backends.cudnn.enabled = name not in RECURRENT
    found, again = (by_train(name, EVERYTHING, dtype, rh.Reversible(), STEPS, device=DEVICE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(found.grads, again.grads, strict=True))
    assert found.trained.report.restored
    if "dropout" not in name:
        expected = by_unroll(name, EVERYTHING, STEPS)
        errors = [error(f.cpu(), e) for f, e in zip(found.grads, expected.grads, strict=True)]
        assert max(errors) < tolerance


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_of_cudnn_are_refused_with_the_remedy(name):
    with pytest.raises(RuntimeError, match=r"no second derivative in torch.*torch\.backends\.cudnn\.enabled = False"):
        by_train(name, EVERYTHING, torch.float32, rh.Reversible(), STEPS, device=DEVICE)
