"""The files that are given out, where RH_DATA names their folder."""

from __future__ import annotations

import shutil

import pytest
import torch
from dataset_files import real

from reversible_hypergrad.datasets import CIFAR10, MNIST, Omniglot, Text

pytestmark = pytest.mark.slow


def test_mnist():
    mnist = MNIST(real("mnist"))
    assert (mnist.train.x.shape, mnist.test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert mnist.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.x.mean().item() == pytest.approx(0.1307, abs=5e-5)  # as is usually subtracted, to its last digit


def test_cifar10():
    """Whole, or a part of it in an archive: the first images are those of the first batch, a frog and two lorries."""
    cifar = CIFAR10(real("cifar10"))
    assert cifar.train.x.shape[1:] == (3, 32, 32)
    assert cifar.train.y[:3].tolist() == [6, 9, 9]
    assert cifar.test.y[:3].tolist() == [3, 8, 8]
    assert (255 * cifar.train.x[0, :, 0, 0]).round().tolist() == [59, 62, 63]


def test_omniglot(tmp_path):
    folder = real("omniglot")
    omniglot = Omniglot(folder)
    assert omniglot.images.shape == (32_460, 1, 28, 28)
    assert (omniglot.labels.bincount() == 20).all()
    assert [len(omniglot.characters(part)) for part in ("train", "validation", "test")] == [1028, 172, 423]
    assert len({name for name, _ in omniglot.names}) == 50
    assert omniglot.episodes(20, 1, 5).classes == 4 * 1028
    assert 0.05 < omniglot.episodes(5, 1, 15, split="test").batch(0, 20).query.mean() < 0.15  # ink is 1, and most is paper
    if (folder / "omniglot_105_bits.npz").exists():
        shutil.copy(folder / "omniglot_105_bits.npz", tmp_path)
        assert torch.equal(Omniglot(tmp_path).images, omniglot.images)


def test_text():
    text = Text(real("text"))
    assert text.decode(text.ids[:13]).isprintable()
    assert text.examples(64).x.shape == ((len(text.ids) - 1) // 64, 64)
