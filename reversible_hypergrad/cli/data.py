"""Images and labels in three parts: training, validation, test."""

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reversible_hypergrad.cli.errors import UsageError

__all__ = ["Data", "Part", "load_digits", "load_mnist", "read_idx"]

Bytes = npt.NDArray[np.uint8]

_CLASSES = 10
_MNIST_PART = 10_000  # at most so many examples for training, and for validation


@dataclass(frozen=True)
class Part:
    images: Tensor  # (examples, pixels), float32 in [0, 1]
    labels: Tensor  # (examples,), int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    name: str
    shape: tuple[int, int]  # rows and columns of an image
    training: Part
    validation: Part
    test: Part
    classes: int = _CLASSES


def load_digits(seed: int) -> Data:
    """scikit-learn's 1797 digits of 8x8 pixels, shuffled by ``seed``: 600 to train, 600 to validate, 597 to test."""
    try:
        from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn, or give --data DIR"
        ) from None
    digits = load()
    images = np.asarray(digits.images).astype(np.float32) / np.float32(16)
    training, validation, test = _shuffled(images, np.asarray(digits.target), [600, 600, 597], seed)
    return Data("scikit-learn digits", (8, 8), training, validation, test)


def load_mnist(directory: Path, seed: int) -> Data:
    """MNIST's IDX files: the test file as it is, and up to 10,000 + 10,000 examples of the training file, shuffled by ``seed``.

    Raises:
        UsageError: naming the file, for whatever is wrong with the directory.
    """
    if not directory.is_dir():
        raise UsageError(f"--data: {directory} is not a directory")
    images, labels = _labelled(directory, "train")
    test_images, test_labels = _labelled(directory, "t10k")
    if images.shape[1:] != test_images.shape[1:]:
        raise UsageError(f"{directory}: train images are {_size(images)} pixels, but t10k images {_size(test_images)}")
    if len(images) < 2:
        raise UsageError(f"{directory}: expected at least 2 training images, got {len(images)}")
    count = min(_MNIST_PART, len(images) // 2)
    training, validation = _shuffled(_scaled(images), labels, [count, count], seed)
    test = _part(_scaled(test_images), test_labels)
    return Data("MNIST", (images.shape[1], images.shape[2]), training, validation, test)


def _labelled(directory: Path, part: str) -> tuple[Bytes, Bytes]:
    image_file, labels_file = (_find(directory, part, kind) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    images, labels = read_idx(image_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise UsageError(f"{image_file} holds {len(images)} images, but {labels_file.name} {len(labels)} labels")
    if 0 in images.shape:
        raise UsageError(f"{image_file} holds no images: its sizes are {images.shape}")
    if labels.max() >= _CLASSES:
        raise UsageError(f"{labels_file}: expected labels from 0 to {_CLASSES - 1}, got {labels.max()}")
    return images, labels


def _find(directory: Path, part: str, kind: str) -> Path:
    for name in [f"{part}-{spelled}{end}" for spelled in (kind, kind.replace("-idx", ".idx")) for end in (".gz", "")]:
        if (directory / name).is_file():
            return directory / name
    raise UsageError(f"{directory}: {part}-{kind}.gz is missing (without .gz is fine, too)")


def read_idx(path: Path, dimensions: int) -> Bytes:
    """An IDX file of bytes with that many dimensions, gzipped if its name ends in ``.gz``.

    Raises:
        UsageError: unreadable, truncated, another type or number of dimensions, or too many bytes.
    """
    opened: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:  # type: ignore[attr-defined]
            content: bytes = file.read()
    except EOFError:
        raise UsageError(f"{path} is truncated: its gzip stream ends too early") from None
    except (OSError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    magic = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and magic != 0x800 + dimensions:
        raise UsageError(
            f"{path} is no IDX file of bytes in {dimensions} dimensions: expected magic {0x800 + dimensions}, got {magic}"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise UsageError(f"{path} is truncated: expected a header of {header} bytes, got {len(content)}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - header != math.prod(shape):
        short = "truncated" if len(content) - header < math.prod(shape) else "damaged"
        raise UsageError(
            f"{path} is {short}: its header promises {math.prod(shape)} bytes ({' x '.join(map(str, shape))}), got "
            f"{len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _scaled(images: Bytes) -> npt.NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def _part(images: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> Part:
    flat = torch.from_numpy(images.reshape(len(images), -1).copy())
    return Part(flat, torch.from_numpy(labels.astype(np.int64)))


def _shuffled(images: npt.NDArray[np.float32], labels: npt.NDArray[np.integer], counts: list[int], seed: int) -> list[Part]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).numpy()
    ends = np.cumsum(counts)
    return [_part(images[order[a:b]], labels[order[a:b]]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _size(images: Bytes) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"
