"""CIFAR-10 and text from a folder; where a file is missing, made-up data, and a sentence that says so."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.datasets import CIFAR10

__all__ = ["cifar10", "text"]


def cifar10(folder: Path | None, count: int) -> tuple[Tensor, Tensor, str]:
    """Images (n, 3, 32, 32) in [-1, 1], labels, and where they are from: ``cifar10/*.npz`` with uint8 ``x_train`` (n, 32, 32, 3)
    and ``y_train`` (n,)."""
    files = sorted((folder / "cifar10").glob("*.npz")) if folder else []
    if not files:
        made = torch.Generator().manual_seed(0)
        images = torch.randn(count, 3, 32, 32, generator=made)
        return images, torch.randint(10, (count,), generator=made), f"MADE-UP images, since {_missing(folder, 'cifar10/*.npz')}"
    train = CIFAR10(files[0]).train
    images, labels = train.x[:count], train.y[:count]
    return 2 * images - 1, labels, f"CIFAR-10, {len(labels):,} images of {files[0].name}"


def text(folder: Path | None, count: int, length: int) -> tuple[Tensor, str]:
    """``count`` windows of ``length`` bytes, evenly spread over ``text/*.txt``, as (count, length) int64; and where from."""
    files = sorted((folder / "text").glob("*.txt")) if folder else []
    if files:
        content = torch.from_numpy(np.fromfile(files[0], np.uint8).astype(np.int64))
        source = f"{files[0].name}, {len(content):,} bytes"
        if len(content) < length:
            raise ValueError(f"{files[0]}: expected at least {length} bytes, got {len(content)}")
    else:
        content = torch.randint(256, (100_000,), generator=torch.Generator().manual_seed(0))
        source = f"MADE-UP bytes, since {_missing(folder, 'text/*.txt')}"
    starts = torch.linspace(0, len(content) - length, count).long()
    return content[starts[:, None] + torch.arange(length)], source


def _missing(folder: Path | None, what: str) -> str:
    return f"{folder / what} is missing" if folder else "no --data DIR was given"
