"""Training quality next to torch.optim.SGD: the final loss, against the noise of float32 training itself."""

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


def compare(data: Data, steps: int, hidden: int) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    torchs = [final_loss(data, lambda p: torch.optim.SGD(p, **settings), steps, hidden, ulps) for ulps in (0, 1, -1, 2, -2)]
    noise = max(torchs) - min(torchs)
    wide = final_loss(data, lambda p: rh.ReversibleSGD(p, **settings), steps, hidden)
    narrow = final_loss(data, lambda p: rh.ReversibleSGD(p, **settings, state_bits=32), steps, hidden)
    print(f"torch {torchs[0]:.9g}, float32 noise {noise:.3g}, 64 bits {wide - torchs[0]:+.3g}, 32 bits {narrow - torchs[0]:+.3g}")
    assert torchs[0] < 1.0, "did not train"
    # Five runs of float32 SGD span `noise`; a sixth draw lies within twice that span of any one of them.
    assert abs(wide - torchs[0]) <= 2 * noise + 1e-7
    assert abs(narrow / torchs[0] - 1) <= 0.01


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
