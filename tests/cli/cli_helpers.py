"""A tiny run's arguments, and tiny IDX files."""

from __future__ import annotations

import gzip
import struct

import numpy as np

# Seconds in place of a minute.
TINY = ["tune", "--steps", "6", "--meta-steps", "2", "--hidden", "4", "--batch-size", "8"]


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
