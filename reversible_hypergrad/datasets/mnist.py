"""MNIST, and data sets in its format."""

from functools import cached_property
from pathlib import Path

from torch import Tensor

from reversible_hypergrad.datasets.examples import Examples, scaled
from reversible_hypergrad.datasets.files import Directory, as_directory, found_in, missing, places
from reversible_hypergrad.datasets.idx import read_idx

__all__ = ["MNIST"]

_SUBFOLDERS = ("mnist", "MNIST/raw")  # the second is torchvision's


class MNIST:
    """Handwritten digits of 28x28 pixels in 10 classes: 60,000 to train and 10,000 to test (LeCun, Cortes, Burges 1998).

    Reads the four IDX files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, each gzipped (``.gz``) or not. Others in the same format, such as Fashion-MNIST, are read as well.

    Args:
        directory: the folder of the four files, or one with a subfolder ``mnist`` or ``MNIST/raw`` of them.

    Attributes:
        train: x float32 (60000, 1, 28, 28) in [0, 1], y int64 (60000,); :class:`Examples`, in the file's order.
        test: the same of the 10,000.
        classes: their number, 10.

    Cost: a part is read when it is first asked for, and held: 188 MB for ``train``, 31 MB for ``test``.

    Raises:
        NotADirectoryError, FileNotFoundError: at once, for a file that is missing, with what was found there.
        ValueError: when the part is read, for files that are damaged or do not belong together.

    >>> from reversible_hypergrad import datasets
    >>> datasets.MNIST("nowhere")
    Traceback (most recent call last):
    NotADirectoryError: nowhere is not a directory. Give the folder that holds the data set's files
    """

    classes = 10

    def __init__(self, directory: Directory) -> None:
        folders = places(as_directory(directory), _SUBFOLDERS)
        self._files = {
            part: (_find(folders, part, "images-idx3"), _find(folders, part, "labels-idx1")) for part in ("train", "t10k")
        }

    @cached_property
    def train(self) -> Examples:
        return self._read("train")

    @cached_property
    def test(self) -> Examples:
        return self._read("t10k")

    def _read(self, part: str) -> Examples:
        image_file, label_file = self._files[part]
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{image_file} holds {len(images)} images, but {label_file.name} {len(labels)} labels. Fetch both from one source"
            )
        if images.numel() == 0:
            raise ValueError(f"{image_file} holds no images: its sizes are {tuple(images.shape)}. Fetch it again")
        _check_labels(label_file, labels, self.classes)
        return Examples(scaled(images).unsqueeze(1), labels.long())


def _find(folders: list[Path], part: str, kind: str) -> Path:
    dotted = kind.replace("-idx", ".idx")
    found = found_in(folders, [f"{part}-{spelled}-ubyte{end}" for spelled in (kind, dotted) for end in (".gz", "")])
    if found is None:
        raise missing(f"{part}-{kind}-ubyte.gz", folders, "All four of MNIST's IDX files are needed; without .gz is fine, too")
    return found


def _check_labels(path: Path, labels: Tensor, classes: int) -> None:
    if int(labels.max()) >= classes:
        raise ValueError(f"{path}: expected labels from 0 to {classes - 1}, got {int(labels.max())}")
