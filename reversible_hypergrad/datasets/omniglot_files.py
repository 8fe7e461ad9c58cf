"""The files that Omniglot comes in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.datasets.arrays import arrays_of
from reversible_hypergrad.datasets.files import Directory, as_directory, found_in, missing, places
from reversible_hypergrad.datasets.pictures import box_resized, read_picture

__all__ = ["Characters", "read_omniglot"]

_SUBFOLDERS = ("omniglot", "omniglot-py")
_SIZE, _ORIGINAL = 28, 105
_AT_ONCE = 4096  # images that are reduced together
_SETS = ("images_background", "images_evaluation")


@dataclass(frozen=True)
class Characters:
    images: Tensor  # uint8 (n, 1, 28, 28), ink 255; by character
    labels: Tensor  # int64 (n,)
    names: list[tuple[str, int]]  # alphabet, and number in it from 1, of each character


def read_omniglot(directory: Directory) -> Characters:
    """Whichever of its forms is there."""
    folders = places(as_directory(directory), _SUBFOLDERS)
    archive = found_in(folders, ["omniglot_28.npz", "omniglot_105_bits.npz"])
    if archive is not None:
        return _from_archive(archive)
    root = next((folder for folder in folders if any((folder / name).is_dir() for name in _SETS)), None)
    if root is None:
        raise missing(
            "omniglot_28.npz (or omniglot_105_bits.npz, or the folders images_background and images_evaluation)",
            folders,
            "Unpack images_background.zip and images_evaluation.zip there",
        )
    absent = [name for name in _SETS if not (root / name).is_dir()]
    if absent:
        raise missing(absent[0], [root], f"Unpack {absent[0]}.zip there")
    return _from_pictures(root)


def _from_archive(file: Path) -> Characters:
    packed = file.name == "omniglot_105_bits.npz"
    pixels = "images_packed" if packed else "images"
    found = arrays_of(file, [pixels, "character", "alphabet", "alphabet_names", "character_names"])
    labels = torch.from_numpy(found["character"].astype(np.int64))
    shape = (len(labels), -(-_ORIGINAL * _ORIGINAL // 8)) if packed else (len(labels), _SIZE, _SIZE)
    if found[pixels].dtype != np.uint8 or found[pixels].shape != shape:
        raise ValueError(f"{file}: expected {pixels} of uint8 {shape}, got {found[pixels].dtype} {found[pixels].shape}")
    count = len(found["character_names"])
    if not torch.equal(torch.unique(labels), torch.arange(count)) or len(found["alphabet"]) != len(labels):
        raise ValueError(f"{file}: expected a character from 0 to {count - 1} and an alphabet per image, and each at least once")
    images = _reduced(found[pixels]) if packed else torch.from_numpy(found[pixels])
    alphabets = np.empty(count, dtype=np.int64)
    alphabets[labels.numpy()] = found["alphabet"]
    names = [
        (str(found["alphabet_names"][alphabet]), _number(file, str(name)))
        for alphabet, name in zip(alphabets, found["character_names"], strict=True)
    ]
    return Characters(images.unsqueeze(1), labels, names)


def _reduced(packed: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> Tensor:
    parts = []
    for some in np.array_split(packed, range(_AT_ONCE, len(packed), _AT_ONCE)):
        bits = np.unpackbits(some, axis=1)[:, : _ORIGINAL * _ORIGINAL].reshape(-1, _ORIGINAL, _ORIGINAL)
        parts.append(box_resized(torch.from_numpy(255 * bits), _SIZE))
    return torch.cat(parts)


def _from_pictures(root: Path) -> Characters:
    folders = [folder for name in _SETS for folder in sorted((root / name).glob("*/*")) if folder.is_dir()]
    images: list[Tensor] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        drawn = [255 - read_picture(file, _ORIGINAL, "L") for file in _pictures(folder)]
        images.append(box_resized(torch.stack(drawn), _SIZE))
        labels += [number] * len(drawn)
    if not images:
        raise missing("a folder per alphabet and character", [root / name for name in _SETS], "Unpack both archives again")
    return Characters(torch.cat(images), torch.tensor(labels), [(f.parent.name, _number(f, f.name)) for f in folders])


def _pictures(folder: Path) -> Sequence[Path]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise missing("a picture *.png", [folder], "Unpack its archive again")
    return files


def _number(where: Path, name: str) -> int:
    found = re.fullmatch(r"character(\d+)", name)
    if found is None:
        raise ValueError(f"{where}: expected a character's name as character01, got {name!r}")
    return int(found[1])
