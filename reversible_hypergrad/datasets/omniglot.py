"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.datasets.episodes import Episodes
from reversible_hypergrad.datasets.files import Directory
from reversible_hypergrad.datasets.omniglot_files import read_omniglot

__all__ = ["Omniglot"]

_CHARACTERS, _SIZES = 1623, (1100, 100, 423)
_PARTS = ("train", "validation", "test")

# The standard division orders the characters by background or evaluation set, alphabet and number: the first 1,200 but five
# alphabets are to train, and the rest, which begins within Gurmukhi, to test.
_VALIDATION = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
_BEFORE_TEST, _LAST_BEFORE_TEST = "Gurmukhi", 41
_TEST = {
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Sylheti",
    "Syriac_(Serto)",
    "Tengwar",
    "Tibetan",
    "ULOG",
}


class Omniglot:
    """Handwritten characters of 28x28 pixels for few-shot learning: 1,623 characters, 20 images of each (Lake et al. 2015).

    Reads ``omniglot_28.npz`` or ``omniglot_105_bits.npz``, or the original folders ``images_background`` and
    ``images_evaluation`` of PNGs, for which Pillow must be installed. Images of 105x105 pixels are reduced to 28x28 by averages
    over areas. Ink is 1 and paper 0.

    Args:
        directory: the folder of these, or one with a subfolder ``omniglot`` or ``omniglot-py`` of them.
        division: None for the standard division of the characters, that of Vinyals et al. 2016 as published with Snell et al.
            2017: 1,028 to train; 172 to validate, which are the alphabets Armenian, Bengali, Early Aramaic, Hebrew and Mkhedruli;
            423 to test. Or a seed, for a random division into 1,100, 100 and 423.

    Attributes:
        images: uint8 (32460, 1, 28, 28), ink 255.
        labels: int64 (32460,), the number of the character.
        names: (alphabet, number in its alphabet, from 1) of each character.

    Cost: 25 MB. Reading takes a fraction of a second, but from bits or PNGs some seconds.

    Raises:
        NotADirectoryError, FileNotFoundError: for files that are missing, with what was found there.
        ImportError: for PNGs without Pillow.
        ValueError: for damaged files, and a random division of another number of characters than 1,623.

    >>> from reversible_hypergrad import datasets
    >>> def first_tasks(directory):
    ...     omniglot = datasets.Omniglot(directory)
    ...     training = omniglot.episodes(way=20, shot=1, queries=5, split="train")
    ...     novel = omniglot.episodes(way=5, shot=1, queries=15, split="test", rotations=False, seed=1)
    ...     return training.batch(0, count=4), novel.episode(0)
    """

    def __init__(self, directory: Directory, *, division: int | None = None) -> None:
        if division is not None:
            check_integer("division", division, otherwise="None")
        found = read_omniglot(directory)
        self.images, self.labels, self.names = found.images, found.labels, found.names
        self._part = _standard(self.names) if division is None else _random(len(self.names), division)

    def characters(self, split: str) -> Tensor:
        """The numbers of a part's characters, int64, ascending.

        Args:
            split: "train", "validation" or "test".

        Raises:
            ValueError: for another name.
        """
        if split not in _PARTS:
            raise ValueError(f"split: expected one of {', '.join(map(repr, _PARTS))}, got {split!r}")
        return (self._part == _PARTS.index(split)).nonzero().squeeze(1)

    def episodes(
        self, way: int, shot: int, queries: int, *, split: str = "train", rotations: bool = True, seed: int = 0
    ) -> Episodes:
        """Few-shot episodes of one part's characters, images float32 (.., 1, 28, 28) in [0, 1].

        Args:
            way: characters per episode, at least 2.
            shot: images per character to learn from, at least 1.
            queries: images per character to be judged by; with ``shot`` at most the 20 that there are.
            split: "train", "validation" or "test": whose characters.
            rotations: each character turned by 90, 180 and 270 degrees counts as three more. Published test accuracies are on
                turned characters as well or on upright ones alone: say which.
            seed: of all episodes.

        Raises:
            TypeError, ValueError: as :class:`Episodes` does, and for another ``split``.
        """
        chosen = torch.isin(self.labels, self.characters(split))
        if not chosen.any():
            raise ValueError(f"split: there are no characters to {split!r} among the {len(self.names)} that were found")
        return Episodes(self.images[chosen], self.labels[chosen], way, shot, queries, rotations=rotations, seed=seed)


def _standard(names: Sequence[tuple[str, int]]) -> Tensor:
    def part(alphabet: str, number: int) -> int:
        if alphabet in _VALIDATION:
            return 1
        return 2 if alphabet in _TEST or (alphabet == _BEFORE_TEST and number > _LAST_BEFORE_TEST) else 0

    return torch.tensor([part(*name) for name in names])


def _random(count: int, seed: int) -> Tensor:
    if count != _CHARACTERS:
        raise ValueError(f"division: a random one needs all {_CHARACTERS} characters, but {count} were found. Leave division out")
    part = torch.empty(count, dtype=torch.int64)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for number, chosen in enumerate(torch.split(order, list(_SIZES))):
        part[chosen] = number
    return part
