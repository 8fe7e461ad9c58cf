"""Few-shot classes from made-up pictures in a folder per class."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from PIL import Image

from reversible_hypergrad.datasets import ImageFolder


def write_class(folder, red, count=3, end="png", size=(84, 84)):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", size, (red, 10 * i, 255)).save(folder / f"{i}.{end}")


def divided(root, validation="val"):
    for i, part in enumerate(["train", validation, "test"]):
        for j in range(2):
            write_class(root / part / f"n{i}{j}", 20 * i + j)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_divided_by_folders(tmp_path, validation):
    divided(tmp_path, validation)
    pictures = ImageFolder(tmp_path)
    assert pictures.names == {"train": ["n00", "n01"], "validation": ["n10", "n11"], "test": ["n20", "n21"]}
    part = pictures.examples("validation")
    assert (part.x.shape, part.x.dtype, part.y.tolist()) == ((6, 3, 84, 84), torch.uint8, [0, 0, 0, 1, 1, 1])
    assert part.x[4, :, 50, 3].tolist() == [21, 10, 255]
    assert pictures.examples("validation") is part  # read once


def test_episodes(tmp_path):
    divided(tmp_path)
    episodes = ImageFolder(tmp_path, size=6).episodes(way=2, shot=1, queries=2, split="test", seed=3)
    episode = episodes.episode(1)
    assert (episode.support.shape, episode.query.shape) == ((2, 3, 6, 6), (4, 3, 6, 6))
    reds = (255 * episode.support[:, 0, 0, 0]).round().tolist()
    assert sorted(reds) == [40, 41]
    assert (255 * episode.query[:, 0, 2, 2]).round().tolist() == [reds[0], reds[0], reds[1], reds[1]]
    assert ImageFolder(tmp_path).episodes(2, 1, 2, rotations=True).classes == 8


def test_divided_at_random(tmp_path):
    names = [f"c{i}" for i in range(7)]
    for i, name in enumerate(names):
        write_class(tmp_path / name, i)
    pictures = ImageFolder(tmp_path, sizes=(3, 1, 2), seed=1)
    assert {part: len(own) for part, own in pictures.names.items()} == {"train": 3, "validation": 1, "test": 2}
    assert len({name for own in pictures.names.values() for name in own}) == 6
    assert ImageFolder(tmp_path, sizes=(3, 1, 2), seed=1).names == pictures.names
    assert any(ImageFolder(tmp_path, sizes=(3, 1, 2), seed=seed).names != pictures.names for seed in (2, 3, 4))
    reds = pictures.examples("train").x[::3, 0, 0, 0].tolist()
    assert reds == [names.index(name) for name in pictures.names["train"]]


def test_other_sizes_and_formats_are_brought_to_one(tmp_path):
    """Left half black, right half white, 100x40 pixels: still so at 8x8; JPEG keeps plain areas to within a few levels."""
    for part in ("train", "val", "test"):
        folder = tmp_path / part / "a"
        folder.mkdir(parents=True)
        halves = np.zeros((40, 100), np.uint8)
        halves[:, 50:] = 255
        Image.fromarray(halves).save(folder / "1.JPG", format="JPEG")
        Image.fromarray(halves).save(folder / "2.ppm")
        (folder / "notes.txt").write_text("no picture")
    x = ImageFolder(tmp_path, size=8).examples("train").x
    assert x.shape == (2, 3, 8, 8)
    assert x[..., :3].max() <= 5
    assert x[..., 5:].min() >= 250


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a directory"):
        ImageFolder(tmp_path / "nowhere")
    for name in ("a", "b", "c"):
        write_class(tmp_path / name, 0)
    with pytest.raises(FileNotFoundError, match=r"train is missing: .* holds a, b, c. Divide the classes .* or give sizes="):
        ImageFolder(tmp_path)
    for sizes in ((2, 1, 1), (1, 1)):
        with pytest.raises(ValueError, match=r"sizes: expected three numbers, .* at most the 3 classes of"):
            ImageFolder(tmp_path, sizes=sizes)
    with pytest.raises(ValueError, match="sizes: expected an integer >= 1, got 0"):
        ImageFolder(tmp_path, sizes=(3, 0, 0))
    pictures = ImageFolder(tmp_path, sizes=(1, 1, 1))
    with pytest.raises(ValueError, match="split: expected one of 'train', 'validation', 'test', got 'val'"):
        pictures.examples("val")
    (tmp_path / "a" / "0.png").write_bytes(b"<html>")
    part = next(part for part, own in pictures.names.items() if own == ["a"])
    with pytest.raises(ValueError, match=r"0.png: expected a picture, but Pillow says"):
        pictures.examples(part)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="divides its classes by folders already"):
        ImageFolder(tmp_path, sizes=(1, 1, 1))
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder per class is missing: .*train holds nothing"):
        ImageFolder(tmp_path)


def test_a_class_without_pictures(tmp_path):
    divided(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a picture \(.*.png.*\) is missing: .*empty holds nothing"):
        ImageFolder(tmp_path).episodes(2, 1, 1)


def test_without_pillow(tmp_path, monkeypatch):
    divided(tmp_path)
    whole = builtins.__import__

    def without(name, *rest):
        if name.startswith("PIL"):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="is a picture, which Pillow reads, and that is not installed: pip install pillow"):
        ImageFolder(tmp_path).examples("train")
