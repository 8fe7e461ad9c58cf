"""16 bits, autocast, loss scaling and channels-last on a GPU: trained, undone bit for bit, and near float64's gradients."""

from __future__ import annotations

import pytest
import torch
from gpu_machine import DEVICE, GPU, whole_float32  # noqa: F401
from optim_problems import frozen
from precision_problems import BFLOAT16, FLOAT16, PRECISIONS, SCALES, Precision, check, check_loss_scaling
from torch import nn

import reversible_hypergrad as rh

pytestmark = [*GPU, pytest.mark.usefixtures("whole_float32")]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BFLOAT16, FLOAT16], ids=str)


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision(name):
    check(PRECISIONS[name], DEVICE)


def test_convolutions_in_tf32():
    """As torch has it unless told otherwise. 10 bits of mantissa, as float16."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    check(Precision(0.008), DEVICE)


@pytest.mark.parametrize("dtype", SCALES, ids=str)
def test_loss_scaling_under_autocast(dtype):
    check_loss_scaling(dtype, DEVICE, frozen)


@DTYPES
@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_weights_of_the_cpu_from_the_same_gradients(dtype, state_bits, layout):
    """And back. Gradients of a channels-last weight may come contiguous, and the other way round."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8, 3, 3), (1, 5, 3, 3), (40,)]
    start = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(20)]
    results = []
    for device in ("cpu", DEVICE):
        weights = [nn.Parameter(w.to(device).to(memory_format=layout) if w.ndim == 4 else w.to(device)) for w in start]
        optimizer = rh.ReversibleSGD(weights, lr=0.02, momentum=0.9, weight_decay=0.1, state_bits=state_bits)

        def give(step, weights=weights, device=device):
            for i, (weight, gradient) in enumerate(zip(weights, gradients[step], strict=True)):
                as_given = gradient.to(device)
                foreign = gradient.ndim == 4 and (step + i) % 2
                weight.grad = as_given.to(memory_format=torch.channels_last) if foreign else as_given

        trajectory = []
        for step in range(20):
            give(step)
            optimizer.step()
            trajectory.append([w.detach().cpu().clone() for w in weights])
        for step in reversed(range(20)):
            optimizer.step_back(lambda step=step, give=give: give(step))
            trajectory.append([w.detach().cpu().clone() for w in weights])
        results.append(trajectory)
    for mine, expected in zip(results[1], results[0], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
    assert all(torch.equal(w, s) for w, s in zip(results[1][-1], start, strict=True))
