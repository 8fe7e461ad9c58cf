"""CIFAR-10, in each of the formats that it is given out in."""

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from reversible_hypergrad.datasets.array_pickles import read_batch
from reversible_hypergrad.datasets.arrays import arrays_of
from reversible_hypergrad.datasets.examples import Examples, scaled
from reversible_hypergrad.datasets.files import Directory, as_directory, missing, places

__all__ = ["CIFAR10"]

_SUBFOLDERS = ("cifar10", "cifar-10-batches-py", "cifar-10-batches-bin")
_NAMES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32
_ENDS = (".bin", "")

Bytes = npt.NDArray[np.uint8]


class CIFAR10:
    """Colour photographs of 32x32 pixels in 10 classes: 50,000 to train and 10,000 to test (Krizhevsky 2009).

    Reads the binary version (``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin``), the Python version (the same
    names without an end; pickles, of which nothing but arrays, numbers and text is let through), or one file ``*.npz`` with
    uint8 ``x_train`` (n, 32, 32, 3) and ``y_train`` (n,), ``x_test`` and ``y_test``, of any number of images.

    Args:
        path: the folder of these files, or one with a subfolder ``cifar10``, ``cifar-10-batches-py`` or ``cifar-10-batches-bin``
            of them; or the file ``*.npz``.

    Attributes:
        train: x float32 (50000, 3, 32, 32) in [0, 1], channels red, green, blue; y int64 (50000,); :class:`Examples`, in the
            order of the files.
        test: the same of the 10,000.
        classes: their number, 10.

    Cost: a part is read when it is first asked for, and held: 614 MB for ``train``, 123 MB for ``test``.

    Raises:
        NotADirectoryError, FileNotFoundError: at once, for files that are missing, with what was found there.
        ValueError: for a folder with several ``*.npz``; when the part is read, for files that are damaged.

    >>> import numpy as np
    >>> from reversible_hypergrad import datasets
    >>> pixels, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)
    >>> np.savez("few.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    >>> datasets.CIFAR10("few.npz").train.x.shape
    torch.Size([4, 3, 32, 32])
    """

    classes = 10

    def __init__(self, path: Directory) -> None:
        self._archive, self._files = _find(Path(path))

    @cached_property
    def train(self) -> Examples:
        return self._read("train")

    @cached_property
    def test(self) -> Examples:
        return self._read("test")

    def _read(self, part: str) -> Examples:
        if self._archive is not None:
            images, labels = _from_archive(self._archive, part)
        else:
            read = [_binary(file) if file.suffix == ".bin" else read_batch(file, _PIXELS) for file in self._files[part]]
            images = np.concatenate([images for images, _ in read]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([labels for _, labels in read])
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.classes):
            where = self._archive or self._files[part][0].parent
            raise ValueError(f"{where}: expected labels from 0 to {self.classes - 1}, got from {labels.min()} to {labels.max()}")
        return Examples(scaled(torch.from_numpy(images)), torch.from_numpy(labels.astype(np.int64)))


def _find(path: Path) -> tuple[Path | None, dict[str, list[Path]]]:
    """The archive; or None and the batches by part."""
    if path.is_file():
        return path, {}
    folders = places(as_directory(path), _SUBFOLDERS)
    for folder, end in ((folder, end) for folder in folders for end in _ENDS):
        files = {part: [folder / f"{name}{end}" for name in names] for part, names in _NAMES.items()}
        absent = [file.name for part in files.values() for file in part if not file.is_file()]
        if not absent:
            return None, files
        if len(absent) < 6:
            raise missing(", ".join(absent), [folder], "All six batches of CIFAR-10 are needed")
    archives = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
    if len(archives) > 1:
        raise ValueError(f"{path}: expected one file *.npz, got {', '.join(a.name for a in archives)}. Give the path of one")
    if not archives:
        raise missing("data_batch_1 (or data_batch_1.bin, or a file *.npz)", folders, "Unpack CIFAR-10's archive there")
    return archives[0], {}


def _binary(file: Path) -> tuple[Bytes, Bytes]:
    """Records of a label and the pixels of one image."""
    content = np.fromfile(file, np.uint8)
    if len(content) == 0 or len(content) % (1 + _PIXELS):
        raise ValueError(
            f"{file}: expected records of {1 + _PIXELS} bytes, got {len(content)} bytes, which are no whole number of them. "
            "Fetch it again"
        )
    records = content.reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]


def _from_archive(file: Path, part: str) -> tuple[Bytes, Bytes]:
    found = arrays_of(file, [f"x_{part}", f"y_{part}"])
    images, labels = found[f"x_{part}"], found[f"y_{part}"]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{file}: expected x_{part} of uint8 (n, 32, 32, 3), got {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(f"{file}: expected y_{part} of integers ({len(images)},), got {labels.dtype} {labels.shape}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels
