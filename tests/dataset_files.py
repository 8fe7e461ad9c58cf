"""Tiny data sets in the formats that are given out, and the real ones where RH_DATA names their folder."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest


def real(name: str) -> Path:
    """The subfolder of that name in the folder that RH_DATA names; the test is skipped without it."""
    folder = os.environ.get("RH_DATA")
    if folder is None:
        pytest.skip("RH_DATA names no folder with the real data sets in mnist/, cifar10/, omniglot/ and text/")
    path = Path(folder) / name
    if not path.is_dir():
        pytest.skip(f"RH_DATA: there is no {path}")
    return path


def write_idx(path, array, magic=None):
    array = np.asarray(array, dtype=np.uint8)
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim if magic is None else magic, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(directory, zipped=True, count=40, size=(5, 4)):
    """Four files of random images whose label is written into the first pixels."""
    random = np.random.default_rng(0)
    end = ".gz" if zipped else ""
    for part, n in (("train", count), ("t10k", count // 2)):
        labels = random.integers(0, 10, n)
        images = random.integers(0, 256, (n, *size))
        images[:, 0, 0] = 25 * labels
        write_idx(directory / f"{part}-images-idx3-ubyte{end}", images)
        write_idx(directory / f"{part}-labels-idx1-ubyte{end}", labels)


def batches_of_cifar10(count: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per file: random images (count, 3, 32, 32) and labels (count,)."""
    random = np.random.default_rng(1)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {
        name: (random.integers(0, 256, (count, 3, 32, 32), np.uint8), random.integers(0, 10, count, np.uint8)) for name in names
    }


def write_cifar10(directory: Path, version: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The files of the "binary", the "python" or the "python 2" version; returns what is in them."""
    batches = batches_of_cifar10()
    for name, (images, labels) in batches.items():
        flat = images.reshape(len(images), -1)
        if version == "binary":
            (directory / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], flat], axis=1).tobytes())
            continue
        content = pickle.dumps({b"data": flat, b"labels": labels.tolist(), b"batch_label": b"made up"}, protocol=2)
        if version == "python 2":  # which had another name for the module
            content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        (directory / name).write_bytes(content)
    return batches


def write_omniglot(directory: Path, characters: Sequence[tuple[str, int]], drawers: int = 2) -> np.ndarray:
    """``omniglot_28.npz``; returns its images, of which the first pixel is the character's number modulo 256."""
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (len(characters) * drawers, 28, 28), np.uint8)
    labels = np.arange(len(characters)).repeat(drawers).astype(np.int16)
    images[:, 0, 0] = labels % 256
    alphabets = sorted({alphabet for alphabet, _ in characters})
    of_character = np.array([alphabets.index(alphabet) for alphabet, _ in characters], np.uint8)
    np.savez(
        directory / "omniglot_28.npz",
        images=images,
        character=labels,
        alphabet=of_character[labels],
        alphabet_names=np.array(alphabets),
        character_names=np.array([f"character{number:02d}" for _, number in characters]),
    )
    return images
