"""Few-shot classes from a folder of pictures per class, such as miniImageNet's."""

from collections.abc import Sequence
from pathlib import Path

import torch

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.datasets.episodes import Episodes
from reversible_hypergrad.datasets.examples import Examples
from reversible_hypergrad.datasets.files import Directory, as_directory, missing
from reversible_hypergrad.datasets.pictures import read_picture

__all__ = ["ImageFolder"]

_ENDS = {".png", ".jpg", ".jpeg", ".ppm", ".bmp"}
_PARTS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


class ImageFolder:
    """Pictures in a folder per class, for few-shot learning; needs Pillow (``pip install pillow``).

    Either ``directory/train/CLASS/*``, the same under ``validation`` (or ``val``) and ``test``: the published divisions of
    miniImageNet (Ravi, Larochelle 2017: 64, 16 and 20 classes of 600 images). Or ``directory/CLASS/*``, and ``sizes`` for a
    random division of the classes. Files that end in .png, .jpg, .jpeg, .ppm or .bmp are read, in the order of their names.

    Args:
        directory: the folder.
        size: pixels of a side, to which pictures are brought by averages over areas; 84 is miniImageNet's.
        sizes: how many classes are to train, to validate and to test; None where the folders say so.
        seed: of the random division.

    Attributes:
        names: part -> its classes' names, sorted; a class's label is its place there.

    Cost: a part is read when it is first asked for, and held as uint8: 813 MB for miniImageNet's 38,400 to train.

    Raises:
        NotADirectoryError, FileNotFoundError: for folders that are missing or have no pictures, with what was found there.
        ImportError: without Pillow, when the first picture is read.
        ValueError: for files that are no pictures, sizes that do not fit, and sizes where folders divide the classes.

    >>> from pathlib import Path
    >>> import torch
    >>> from PIL import Image
    >>> from reversible_hypergrad import datasets
    >>> for name in ("ant", "bee", "cat", "dog", "eel", "fox"):
    ...     Path("made_up", name).mkdir(parents=True)
    ...     for i in range(3):
    ...         Image.new("RGB", (100, 90), (40 * i, 0, 255)).save(f"made_up/{name}/{i}.png")
    >>> pictures = datasets.ImageFolder("made_up", size=8, sizes=(2, 2, 2), seed=0)
    >>> pictures.episodes(way=2, shot=1, queries=2, split="test").episode(0).query.shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, directory: Directory, *, size: int = 84, sizes: Sequence[int] | None = None, seed: int = 0) -> None:
        check_integer("size", size, least=1)
        self._size = size
        folder = as_directory(directory)
        self._classes = _divided(folder) if sizes is None else _drawn(folder, sizes, seed)
        self.names = {part: [path.name for path in classes] for part, classes in self._classes.items()}
        self._read: dict[str, Examples] = {}

    def examples(self, split: str) -> Examples:
        """All pictures of a part.

        Args:
            split: "train", "validation" or "test".

        Returns:
            x uint8 (n, 3, size, size) from 0 to 255; y int64 (n,), labels within the part.

        Raises:
            ValueError: for another part, or a file that is no picture.
        """
        if split not in self._classes:
            raise ValueError(f"split: expected one of {', '.join(map(repr, self._classes))}, got {split!r}")
        if split not in self._read:
            files = [_pictures(folder) for folder in self._classes[split]]
            images = [read_picture(file, self._size, "RGB") for own in files for file in own]
            labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(own) for own in files]))
            self._read[split] = Examples(torch.stack(images), labels)
        return self._read[split]

    def episodes(
        self, way: int, shot: int, queries: int, *, split: str = "train", rotations: bool = False, seed: int = 0
    ) -> Episodes:
        """Few-shot episodes of one part's classes, images float32 (.., 3, size, size) in [0, 1].

        Args:
            way: classes per episode, at least 2.
            shot: images per class to learn from, at least 1.
            queries: images per class to be judged by, at least 1.
            split: "train", "validation" or "test": whose classes.
            rotations: each class turned by 90, 180 and 270 degrees counts as three more.
            seed: of all episodes.

        Raises:
            TypeError, ValueError: as :class:`Episodes` and :meth:`examples` do.
        """
        part = self.examples(split)
        return Episodes(part.x, part.y, way, shot, queries, rotations=rotations, seed=seed)


def _divided(folder: Path) -> dict[str, list[Path]]:
    """The classes by part, as subfolders divide them."""
    classes = {}
    for part, names in _PARTS.items():
        found = next((folder / name for name in names if (folder / name).is_dir()), None)
        if found is None:
            raise missing(
                f"{folder / part}",
                [folder],
                "Divide the classes by folders train, validation and test, or give sizes=(train, validation, test) for a random "
                "division",
            )
        classes[part] = _folders(found)
    return classes


def _drawn(folder: Path, sizes: Sequence[int], seed: int) -> dict[str, list[Path]]:
    """The classes by part, divided at random."""
    classes = _folders(folder)
    for size in sizes:
        check_integer("sizes", size, least=1)
    if any((folder / name).is_dir() for name in ("train", "validation", "val", "test")):
        raise ValueError(
            f"sizes: {folder} divides its classes by folders already ({', '.join(c.name for c in classes)}). Leave it out"
        )
    if len(sizes) != len(_PARTS) or sum(sizes) > len(classes):
        raise ValueError(
            f"sizes: expected three numbers, to train, validate and test, that sum to at most the {len(classes)} classes of "
            f"{folder}, got {tuple(sizes)}"
        )
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order[: sum(sizes)], list(sizes))
    return {part: [classes[i] for i in sorted(own.tolist())] for part, own in zip(_PARTS, parts, strict=True)}


def _folders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if not found:
        raise missing("a folder per class", [folder], "Put each class's pictures into a folder of their own")
    return found


def _pictures(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDS)
    if not found:
        raise missing(f"a picture ({', '.join(sorted(_ENDS))})", [folder], "Every class needs some; remove empty folders")
    return found
