"""MNIST from IDX files, and the digits of scikit-learn."""

from __future__ import annotations

import builtins
import gzip

import numpy as np
import pytest
import torch
from dataset_files import write_idx, write_mnist

import reversible_hypergrad as rh
from reversible_hypergrad.datasets import MNIST, Digits


@pytest.mark.parametrize("zipped", [True, False], ids=["gzipped", "raw"])
@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
def test_four_files(tmp_path, zipped, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    write_mnist(folder, zipped)
    mnist = MNIST(tmp_path)
    for part, count in ((mnist.train, 40), (mnist.test, 20)):
        assert (part.x.shape, part.x.dtype) == ((count, 1, 5, 4), torch.float32)
        assert (part.y.shape, part.y.dtype) == ((count,), torch.int64)
        assert torch.equal(part.x[:, 0, 0, 0], 25 * part.y.float() / 255)
    assert 0 <= mnist.train.x.min() < mnist.train.x.max() <= 1
    assert mnist.train is mnist.train  # read once


def test_names_with_dots(tmp_path):
    write_mnist(tmp_path, zipped=False)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(MNIST(str(tmp_path)).train) == 40


def test_examples_are_a_dataset_of_the_loader(tmp_path):
    write_mnist(tmp_path)
    loader = rh.ReplayableLoader(MNIST(tmp_path).train, batch_size=8)
    x, y = loader(3)
    assert x.shape == (8, 1, 5, 4)
    assert torch.equal((x[:, 0, 0, 0] * 255 / 25).round().long(), y)


def test_a_missing_file_is_told_before_anything_is_read(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"spoilt")
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz is missing: .* holds t10k-images.*All four"):
        MNIST(tmp_path)


def spoil(path, change):
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-3], "is truncated: its header promises 800 bytes"),
        (lambda content: content + b"more", "is damaged: its header promises 800 bytes"),
        (lambda content: content[:6], "is truncated: expected a header of 16 bytes, got 6"),
        (lambda content: b"\0\0\x08\x01" + content[4:], "expected magic 2051, got 2049"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    write_mnist(tmp_path)
    spoil(tmp_path / "train-images-idx3-ubyte.gz", change)
    mnist = MNIST(tmp_path)
    assert len(mnist.test) == 20
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte.gz.*{message}"):
        _ = mnist.train


def test_files_that_do_not_belong_together(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", [1] * 39)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", [10] * 20)
    with pytest.raises(ValueError, match=r"holds 40 images, but train-labels-idx1-ubyte.gz 39 labels"):
        _ = MNIST(tmp_path).train
    with pytest.raises(ValueError, match=r"t10k-labels.*expected labels from 0 to 9, got 10"):
        _ = MNIST(tmp_path).test


def test_digits():
    digits = Digits()
    assert (digits.x.shape, digits.x.dtype, digits.x.min(), digits.x.max()) == ((1797, 1, 8, 8), torch.float32, 0, 1)
    assert (digits.y.dtype, digits.y[:10].tolist(), digits.classes) == (torch.int64, list(range(10)), 10)
    assert torch.equal(digits.x * 16, (digits.x * 16).round())


def test_digits_without_scikit_learn(monkeypatch):
    whole = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        Digits()


def test_bytes_are_divided_as_numpy_divides_them(tmp_path):
    """To the last bit, so that results do not move with the library that scales."""
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", np.arange(256).reshape(4, 8, 8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", range(4))
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(MNIST(tmp_path).train.x.flatten().numpy(), expected)
