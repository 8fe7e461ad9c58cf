"""Training quality next to torch.optim.SGD: weights and final loss, against the noise of float32 training itself."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optim_problems import digits, mlp
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    set_num_threads(1)


Data = tuple[Tensor, Tensor]
Make = Callable[[Any], torch.optim.Optimizer]


def final_loss(data: Data, make: Make, steps: int, hidden: int, ulps: int = 0) -> float:
    """Of all data after training; ``ulps`` moves every initial weight by so many units in the last place."""
    images, labels = data
    torch.manual_seed(0)
    model = (
        mlp(hidden=hidden) if images.shape[1] == 64 else nn.Sequential(nn.Linear(784, hidden), nn.Tanh(), nn.Linear(hidden, 10))
    )
    with torch.no_grad():
        for p in model.parameters():
            for _ in range(abs(ulps)):
                p.copy_(torch.nextafter(p, torch.full_like(p, torch.inf * ulps)))
    optimizer = make(model.parameters())
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(model(images), labels).item()


def weights_after(dtype: torch.dtype, make: Make, steps: int, hidden: int) -> tuple[Tensor, float]:
    """All weights, and the loss of all data, after training on digits in ``dtype``."""
    images, labels = digits()
    model = mlp(hidden=hidden).to(dtype)
    optimizer = make(model.parameters())
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen].to(dtype)), labels[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = F.cross_entropy(model(images.to(dtype)), labels).item()
    return torch.cat([p.detach().double().flatten() for p in model.parameters()]), loss


@pytest.mark.parametrize(("momentum", "lr"), [(0.9, 0.1), (0.99, 0.01), (0.8731, 0.1), (0.95, 0.05), (0.999, 0.001)])
def test_as_near_to_float64_as_float32_sgd(momentum: float, lr: float) -> None:
    """After 1,500 steps, whatever the width of the state.

    Allowance: all of these runs take gradients in float32, whose rounding alone leads float32 SGD some 1e-6 away; that is one
    draw of an error, within a factor of 2 of another one. 32-bit integers add the rounding of each change of the weights to
    quanta of 2^-25 of the largest first weight. As errors of random sign these add up to 0.3 * 2^-25 * sqrt(1500) = 3.5e-7 of
    it. First weights are uniform, so that is 6e-7 of their root mean square. The velocity's rounding is of the same size.
    """
    settings: dict[str, Any] = {"lr": lr, "momentum": momentum}
    exact, loss = weights_after(torch.float64, lambda p: torch.optim.SGD(p, **settings), 1500, 128)
    assert loss < 1.0, "did not train"

    def distance(make: Make) -> float:
        weights, _ = weights_after(torch.float32, make, 1500, 128)
        return ((weights - exact).norm() / exact.norm()).item()

    single = distance(lambda p: torch.optim.SGD(p, **settings))
    wide = distance(lambda p: rh.ReversibleSGD(p, **settings, state_bits=64, verify_every=100))
    narrow = distance(lambda p: rh.ReversibleSGD(p, **settings, state_bits=32, verify_every=100))
    print(f"momentum {momentum}: float32 {single:.2g}, 64 bits {wide:.2g}, 32 bits {narrow:.2g}")
    assert wide <= 2 * single
    assert narrow <= 2 * single + 2 * 6e-7


def compare(data: Data, steps: int, hidden: int) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    torchs = [final_loss(data, lambda p: torch.optim.SGD(p, **settings), steps, hidden, ulps) for ulps in (0, 1, -1, 2, -2)]
    noise = max(torchs) - min(torchs)
    assert torchs[0] < 1.0, "did not train"
    for state_bits in (64, 32):
        ours = final_loss(data, lambda p, b=state_bits: rh.ReversibleSGD(p, **settings, state_bits=b), steps, hidden)
        print(f"torch {torchs[0]:.9g}, float32 noise {noise:.3g}, {state_bits} bits {ours - torchs[0]:+.3g}")
        # Five runs of float32 SGD span `noise`; a sixth draw lies within twice that span of any one of them.
        assert abs(ours - torchs[0]) <= 2 * noise + 1e-7


def test_digits() -> None:
    compare(digits(), steps=600, hidden=16)


@pytest.mark.slow
def test_mnist() -> None:
    folder = Path(os.environ.get("RH_DATA", Path(__file__).parents[2] / "../shared/data")) / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST in {folder}: set RH_DATA to the directory that has mnist/train-images-idx3-ubyte.gz")
    images = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16).reshape(
        -1, 784
    )
    labels = np.frombuffer(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    compare((torch.tensor(images / 255, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)), steps=1000, hidden=64)
