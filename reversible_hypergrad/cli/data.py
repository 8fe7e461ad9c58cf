"""A data set in the three parts of the command: training, validation, test."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from reversible_hypergrad.cli.errors import UsageError
from reversible_hypergrad.datasets import MNIST, Digits, Examples, split

__all__ = ["Data", "Part", "load_digits", "load_mnist"]

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
    classes: int


def load_digits(seed: int) -> Data:
    """scikit-learn's 1797 digits of 8x8 pixels, shuffled by ``seed``: 600 to train, 600 to validate, 597 to test."""
    try:
        digits = Digits()
    except ImportError as error:
        raise UsageError(f"{error}, or give --data DIR") from None
    training, validation, test = map(_part, split(digits.x, digits.y, [600, 600, 597], seed))
    return Data("scikit-learn digits", (8, 8), training, validation, test, digits.classes)


def load_mnist(directory: Path, seed: int) -> Data:
    """MNIST's IDX files: the test file as it is, and up to 10,000 + 10,000 examples of the training file, shuffled by ``seed``.

    Raises:
        UsageError: naming the file, for whatever is wrong with the directory.
    """
    try:
        mnist = MNIST(directory)
        train, test = mnist.train, mnist.test
    except (OSError, ValueError) as error:
        raise UsageError(f"--data: {error}") from None
    (rows, columns), others = train.x.shape[2:], test.x.shape[2:]
    if (rows, columns) != tuple(others):
        raise UsageError(f"{directory}: train images are {rows}x{columns} pixels, but t10k images {others[0]}x{others[1]}")
    if len(train) < 2:
        raise UsageError(f"{directory}: expected at least 2 training images, got {len(train)}")
    count = min(_MNIST_PART, len(train) // 2)
    training, validation = map(_part, split(train.x, train.y, [count, count], seed))
    return Data("MNIST", (rows, columns), training, validation, _part(test), mnist.classes)


def _part(examples: Examples) -> Part:
    return Part(examples.x.flatten(1), examples.y)
