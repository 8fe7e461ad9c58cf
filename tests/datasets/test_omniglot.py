"""Omniglot in its three forms, and the divisions of its characters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset_files import write_omniglot
from PIL import Image

from reversible_hypergrad.datasets import Omniglot
from reversible_hypergrad.datasets.pictures import box_resized

FEW = [("Armenian", 1), ("Greek", 1), ("Greek", 2), ("Gurmukhi", 41), ("Gurmukhi", 42), ("Hebrew", 7), ("ULOG", 3)]


@pytest.mark.parametrize("place", [".", "omniglot"])
def test_archive(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    images = write_omniglot(tmp_path / place, FEW)
    omniglot = Omniglot(tmp_path)
    assert torch.equal(omniglot.images, torch.from_numpy(images)[:, None])
    assert omniglot.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert omniglot.names == FEW


def test_standard_division(tmp_path):
    """By alphabets, and within Gurmukhi after its 41st character."""
    write_omniglot(tmp_path, FEW)
    omniglot = Omniglot(tmp_path)
    parts = {part: [FEW[i] for i in omniglot.characters(part)] for part in ("train", "validation", "test")}
    assert parts == {
        "train": [("Greek", 1), ("Greek", 2), ("Gurmukhi", 41)],
        "validation": [("Armenian", 1), ("Hebrew", 7)],
        "test": [("Gurmukhi", 42), ("ULOG", 3)],
    }
    with pytest.raises(ValueError, match="split: expected one of 'train', 'validation', 'test', got 'val'"):
        omniglot.episodes(2, 1, 1, split="val")


def test_random_division(tmp_path):
    write_omniglot(tmp_path, [("Greek", 1 + i) for i in range(1623)], drawers=1)
    names = ("train", "validation", "test")
    first, again, other = ([Omniglot(tmp_path, division=seed).characters(name) for name in names] for seed in (0, 0, 1))
    assert [len(part) for part in first] == [1100, 100, 423]
    assert torch.cat(first).sort().values.tolist() == list(range(1623))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])


def test_random_division_of_a_few(tmp_path):
    write_omniglot(tmp_path, FEW)
    with pytest.raises(ValueError, match="division: a random one needs all 1623 characters, but 7 were found"):
        Omniglot(tmp_path, division=0)


def test_episodes_take_characters_of_their_part(tmp_path):
    images = write_omniglot(tmp_path, FEW)
    episodes = Omniglot(tmp_path).episodes(way=2, shot=1, queries=1, split="test", rotations=False)
    assert episodes.classes == 2
    assert Omniglot(tmp_path).episodes(way=2, shot=1, queries=1, split="test").classes == 8
    for k in range(5):
        episode = episodes.episode(k)
        assert episode.support.shape == (2, 1, 28, 28)
        both = (255 * torch.cat([episode.support, episode.query])).round().to(torch.uint8)
        assert set(both[:, 0, 0, 0].tolist()) == {4, 6}
        assert all((both[i, 0].numpy() == images).all((1, 2)).any() for i in range(4))
    with pytest.raises(ValueError, match=r"way: expected at most 8, the classes that there are, turned ones counted, got 9"):
        Omniglot(tmp_path).episodes(way=9, shot=1, queries=1, split="validation")
    with pytest.raises(ValueError, match=r"shot \+ queries: expected at most 2, the images of class 1, got 1 \+ 2"):
        Omniglot(tmp_path).episodes(way=2, shot=1, queries=2)


def drawings():
    """Seven characters by two, of 105x105 bits."""
    return np.random.default_rng(3).integers(0, 2, (14, 105, 105), np.uint8)


def by_pillow(bits):
    """What Pillow makes of ink = 255."""
    return torch.from_numpy(np.stack([np.array(Image.fromarray(255 * b).resize((28, 28), Image.Resampling.BOX)) for b in bits]))[
        :, None
    ]


def test_packed_bits(tmp_path):
    write_omniglot(tmp_path, FEW)
    with np.load(tmp_path / "omniglot_28.npz") as found:
        others = {name: found[name] for name in found.files if name != "images"}
    (tmp_path / "omniglot_28.npz").unlink()
    packed = np.packbits(drawings().reshape(14, -1), axis=1)
    np.savez(tmp_path / "omniglot_105_bits.npz", images_packed=packed, **others)
    assert torch.equal(Omniglot(tmp_path).images, by_pillow(drawings()))


def write_pictures(root):
    for label, (alphabet, number) in enumerate(FEW):
        part = "images_background" if alphabet in ("Armenian", "Greek", "Hebrew") else "images_evaluation"
        folder = root / part / alphabet / f"character{number:02d}"
        folder.mkdir(parents=True)
        for drawer in (1, 2):
            ink = drawings()[2 * label + drawer - 1].astype(bool)
            Image.fromarray(~ink).save(folder / f"{label:04d}_{drawer:02d}.png")  # one bit per pixel, paper white


def test_folders_of_pictures(tmp_path):
    """The order is by background or evaluation, alphabet, and number."""
    (tmp_path / "omniglot-py").mkdir()
    write_pictures(tmp_path / "omniglot-py")
    omniglot = Omniglot(tmp_path)
    order = [0, 1, 2, 5, 3, 4, 6]
    assert omniglot.names == [FEW[i] for i in order]
    assert torch.equal(omniglot.images, by_pillow(drawings().reshape(7, 2, 105, 105)[order].reshape(14, 105, 105)))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"omniglot_28.npz .* is missing: .* holds nothing. Unpack images_background.zip"):
        Omniglot(tmp_path)
    write_pictures(tmp_path)
    next(tmp_path.glob("*/*/character02")).rename(tmp_path / "images_background" / "Greek" / "second")
    with pytest.raises(ValueError, match="expected a character's name as character01, got 'second'"):
        Omniglot(tmp_path)
    for file in (tmp_path / "images_background" / "Armenian" / "character01").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a picture \*.png is missing: .*character01 holds nothing"):
        Omniglot(tmp_path)
    (tmp_path / "images_evaluation").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"^images_evaluation is missing: .* holds elsewhere, images_background. Unpack"):
        Omniglot(tmp_path)


def test_wrong_archives_are_named(tmp_path):
    write_omniglot(tmp_path, FEW)
    with np.load(tmp_path / "omniglot_28.npz") as found:
        arrays = {name: found[name] for name in found.files}
    for changed, message in (
        ({"images": arrays["images"][:, :20]}, r"expected images of uint8 \(14, 28, 28\), got uint8 \(14, 20, 28\)"),
        ({"character": arrays["character"] + 1}, "expected a character from 0 to 6 and an alphabet per image"),
        ({"alphabet": arrays["alphabet"][1:]}, "expected a character from 0 to 6 and an alphabet per image"),
    ):
        np.savez(tmp_path / "omniglot_28.npz", **{**arrays, **changed})
        with pytest.raises(ValueError, match=message):
            Omniglot(tmp_path)
    (tmp_path / "omniglot_28.npz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"omniglot_28.npz: expected an archive .npz with images, character"):
        Omniglot(tmp_path)


@pytest.mark.parametrize(("before", "size"), [(105, 28), (28, 14), (28, 28), (84, 5)])
def test_averages_are_those_of_pillow(before, size):
    images = np.random.default_rng(4).integers(0, 256, (6, before, before), np.uint8)
    expected = np.stack([np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BOX)) for image in images])
    assert np.array_equal(box_resized(torch.from_numpy(images), size).numpy(), expected)
