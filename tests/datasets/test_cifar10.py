"""CIFAR-10 in its three formats; nothing in a pickle runs."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from dataset_files import batches_of_cifar10, write_cifar10

from reversible_hypergrad.datasets import CIFAR10

VERSIONS = ("binary", "python", "python 2")


def check(part, batches):
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    assert (part.x.dtype, part.y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(part.x, torch.from_numpy(images).float() / 255)
    assert part.y.tolist() == labels.tolist()


@pytest.mark.parametrize("version", VERSIONS)
def test_batches(tmp_path, version):
    folder = tmp_path / ("cifar-10-batches-bin" if version == "binary" else "cifar-10-batches-py")
    folder.mkdir()
    batches = write_cifar10(folder, version)
    for path in (tmp_path, folder):
        cifar = CIFAR10(path)
        check(cifar.train, [batches[f"data_batch_{i}"] for i in range(1, 6)])
        check(cifar.test, [batches["test_batch"]])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_batch_is_named(tmp_path, version):
    write_cifar10(tmp_path, version)
    next(tmp_path.glob("data_batch_3*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"^data_batch_3(.bin)? is missing: .* holds .*All six"):
        CIFAR10(tmp_path)


def archive(path, **changed):
    images, labels = batches_of_cifar10()["test_batch"]
    pixels = images.transpose(0, 2, 3, 1)
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels[:1], "y_test": labels[:1], **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return images, labels


def test_archive(tmp_path):
    images, labels = archive(tmp_path / "few.npz")
    for path in (tmp_path, tmp_path / "few.npz"):
        cifar = CIFAR10(path)
        check(cifar.train, [(images, labels)])
        check(cifar.test, [(images[:1], labels[:1])])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"x_train": np.zeros((3, 3, 32, 32), np.uint8)},
            r"expected x_train of uint8 \(n, 32, 32, 3\), got uint8 \(3, 3, 32, 32\)",
        ),
        ({"y_train": np.zeros(2, np.uint8)}, r"expected y_train of integers \(3,\), got uint8 \(2,\)"),
        ({"y_train": np.full(3, 10)}, "expected labels from 0 to 9, got from 10 to 10"),
        ({"y_train": None}, "it has no y_train, but x_train, x_test, y_test"),
        ({"y_train": np.array([{}, 1, 2])}, "Object arrays cannot be loaded"),
    ],
)
def test_wrong_archives_are_named(tmp_path, changed, message):
    archive(tmp_path / "few.npz", **changed)
    with pytest.raises(ValueError, match=rf"few.npz: .*{message}"):
        _ = CIFAR10(tmp_path).train


def test_folders_that_leave_it_open(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1 .* is missing: .* holds nothing"):
        CIFAR10(tmp_path)
    for name in ("a", "b"):
        archive(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"expected one file \*.npz, got a.npz, b.npz. Give the path of one"):
        CIFAR10(tmp_path)
    with pytest.raises(NotADirectoryError, match="nowhere is not a directory"):
        CIFAR10(tmp_path / "nowhere")


def test_binary_batches_that_end_too_early(tmp_path):
    write_cifar10(tmp_path, "binary")
    file = tmp_path / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test_batch.bin: expected records of 3073 bytes, got 9218 bytes"):
        _ = CIFAR10(tmp_path).test


class Calls:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"data": Calls(), b"labels": []}), "it asks for posix.mkdir, which a batch of images does not need"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}), r"expected a dictionary with data and labels, got \['data'\]"),
        (pickle.dumps([1, 2]), "expected a dictionary with data and labels, got list"),
        (pickle.dumps({b"data": np.zeros((1, 3), np.uint8), b"labels": [1]}), r"expected data of uint8 \(n, 3072\) and n labels"),
        (b"<html>", "expected a pickled batch of CIFAR-10"),
        (b"", "expected a pickled batch of CIFAR-10"),
    ],
)
def test_wrong_pickles_are_named_and_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path, "python")
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=rf"test_batch: .*{message}"):
        _ = CIFAR10(tmp_path).test
    assert not (tmp_path / "made-by-a-pickle").exists()
