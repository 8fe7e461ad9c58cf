"""The three parts, and everything that can be wrong with a directory of IDX files, in one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import TINY
from dataset_files import real, write_idx, write_mnist

from reversible_hypergrad.cli.data import load_digits, load_mnist
from reversible_hypergrad.cli.errors import UsageError


def rows(*parts):
    return torch.cat([part.images for part in parts])


def test_digits_are_split_without_overlap():
    data = load_digits(seed=3)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [600, 600, 597]
    images = rows(data.training, data.validation, data.test)
    assert images.shape == (1797, 64)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    # No example is in two parts: the whole is the data set, in another order.
    whole = load_digits(seed=4)
    other = rows(whole.training, whole.validation, whole.test)
    assert not torch.equal(images, other)
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, other.tolist()))


@pytest.mark.parametrize("zipped", [True, False], ids=["gzipped", "raw"])
def test_mnist_files(tmp_path, zipped):
    write_mnist(tmp_path, zipped)
    data = load_mnist(tmp_path, seed=0)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [20, 20, 20]
    assert data.shape == (5, 4)
    for part in (data.training, data.validation, data.test):
        assert torch.equal((part.images[:, 0] * 255 / 25).round().long(), part.labels)


def test_real_mnist():
    data = load_mnist(real("mnist"), seed=0)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [10_000, 10_000, 10_000]
    assert data.shape == (28, 28)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.training.labels.bincount().min() > 850


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def cut_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-3]))


def cut_header(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:6]))


def longer(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more"))


def no_gzip(path):
    path.write_bytes(b"<html>404 not found</html>")


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[30:40] = bytes(10)
    path.write_bytes(content)


DAMAGE = {
    "missing": ("train-images-idx3-ubyte.gz", Path.unlink, "is missing"),
    "truncated gzip": ("train-images-idx3-ubyte.gz", cut, "truncated"),
    "truncated inside": ("train-images-idx3-ubyte.gz", cut_inside, "is truncated: its header promises 800 bytes"),
    "truncated header": ("t10k-labels-idx1-ubyte.gz", cut_header, "expected a header of 8 bytes, got 6"),
    "too long": ("t10k-images-idx3-ubyte.gz", longer, "is damaged"),
    "not gzipped": ("t10k-images-idx3-ubyte.gz", no_gzip, "cannot be read"),
    "corrupt": ("train-images-idx3-ubyte.gz", corrupt, "cannot be read"),
    "empty": ("train-labels-idx1-ubyte.gz", lambda path: path.write_bytes(b""), "truncated"),
    "wrong magic": (
        "train-labels-idx1-ubyte.gz",
        lambda path: write_idx(path, range(5), magic=2051),
        "expected magic 2049, got 2051",
    ),
    "labels for images": ("t10k-images-idx3-ubyte.gz", lambda path: write_idx(path, range(5)), "expected magic 2051, got 2049"),
    "wrong count": ("train-labels-idx1-ubyte.gz", lambda path: write_idx(path, [1] * 39), "40 images, but"),
    "label 10": ("t10k-labels-idx1-ubyte.gz", lambda path: write_idx(path, [10] * 20), "from 0 to 9, got 10"),
    "other size": (
        "t10k-images-idx3-ubyte.gz",
        lambda path: write_idx(path, np.zeros((20, 4, 4))),
        "5x4 pixels, but t10k images 4x4",
    ),
    "no images": ("t10k-images-idx3-ubyte.gz", lambda path: write_idx(path, np.zeros((0, 5, 4))), "0 images, but"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_directory_gives_one_line(mnist, command, tmp_path, damage):
    name, spoil, expected = DAMAGE[damage]
    spoil(mnist / name)
    status, out, err = command(*TINY, "--data", mnist, "--output", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err
    assert name.split("-")[0] in err


def test_directory_that_is_none(command, tmp_path):
    status, _, err = command(*TINY, "--data", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert (status, err.count("\n")) == (2, 1)
    assert "nowhere is not a directory" in err


def test_too_few_images(tmp_path):
    write_mnist(tmp_path, count=2)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((1, 5, 4)))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", [3])
    with pytest.raises(UsageError, match="at least 2 training images, got 1"):
        load_mnist(tmp_path, seed=0)
