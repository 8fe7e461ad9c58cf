"""Splits by seed, flipped labels, and texts."""

from __future__ import annotations

import pytest
import torch

from reversible_hypergrad.datasets import Examples, Text, flipped, split


def test_parts_have_no_common_example():
    x, y = torch.rand(10, 2), torch.arange(10)
    parts = split(x, y, [4, 0, 3], seed=2)
    assert [len(part) for part in parts] == [4, 0, 3]
    assert len({int(label) for part in parts for label in part.y}) == 7
    assert all(torch.equal(part.x, x[part.y]) for part in parts)
    again, other = split(x, y, [4, 0, 3], seed=2), split(x, y, [4, 0, 3], seed=3)
    assert all(torch.equal(a.y, b.y) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(parts[0].y, other[0].y)
    parts[0].x.zero_()  # a copy
    assert (x != 0).all()


def test_sizes_that_do_not_fit():
    x, y = torch.rand(10, 2), torch.arange(10)
    with pytest.raises(ValueError, match=r"sizes: expected at most 10 in all, the examples that there are, got \[6, 5\]"):
        split(x, y, [6, 5], seed=0)
    with pytest.raises(ValueError, match="sizes: expected an integer >= 0, got -1"):
        split(x, y, [-1, 5], seed=0)
    with pytest.raises(TypeError, match=r"sizes: expected an integer >= 0, got 0.5"):
        split(x, y, [0.5, 0.5], seed=0)
    with pytest.raises(ValueError, match=r"expected one target per input, got shapes \(10, 2\) and \(9,\)"):
        Examples(x, y[:9])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flipped_labels(share):
    labels = torch.arange(2000) % 5
    before = labels.clone()
    changed, mask = flipped(labels, share, classes=5, seed=1)
    assert torch.equal(labels, before)
    assert (changed.dtype, mask.dtype, int(mask.sum())) == (torch.int64, torch.bool, round(2000 * share))
    assert torch.equal(changed != labels, mask)
    assert all(torch.equal(a, b) for a, b in zip(flipped(labels, share, 5, seed=1), (changed, mask), strict=True))
    if share:
        assert not torch.equal(flipped(labels, share, 5, seed=2)[0], changed)


def test_flipped_labels_are_uniform_over_the_other_classes():
    """Of 20,000 labels of class 2, each of the four others gets 5,000; six standard deviations, sqrt(20000 / 4 * 3 / 4) = 61."""
    changed, _ = flipped(torch.full((20_000,), 2), 1.0, classes=5, seed=0)
    counts = changed.bincount(minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 5000).abs().max() <= 6 * 61


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.arange(3), 1.5, 3), ValueError, "share: expected a number from 0 to 1, got 1.5"),
        ((torch.arange(3), float("nan"), 3), ValueError, "share: expected a number from 0 to 1, got nan"),
        ((torch.arange(3), 0.5, 1), ValueError, "classes: expected an integer >= 2, got 1"),
        ((torch.arange(3), 0.5, 2), ValueError, "labels: expected each from 0 to 1, got from 0 to 2"),
        ((torch.arange(3) - 1, 0.5, 2), ValueError, "labels: expected each from 0 to 1, got from -1 to 1"),
        ((torch.rand(3), 0.5, 2), TypeError, r"labels: expected int64 of shape \(n,\), got torch.float32 of shape \(3,\)"),
        (
            (torch.zeros(3, 2).long(), 0.5, 2),
            TypeError,
            r"labels: expected int64 of shape \(n,\), got torch.int64 of shape \(3, 2\)",
        ),
    ],
)
def test_labels_that_cannot_be_flipped(arguments, error, message):
    with pytest.raises(error, match=message):
        flipped(*arguments, seed=0)


def test_text(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "some.txt").write_text("ab, é ab", encoding="utf-8")
    for path in (tmp_path, tmp_path / "text", tmp_path / "text" / "some.txt"):
        text = Text(path)
        assert text.characters == " ,abé"
        assert (text.ids.tolist(), text.ids.dtype) == ([2, 3, 1, 0, 4, 0, 2, 3], torch.int64)
        assert text.decode(text.ids) == "ab, é ab"
    assert torch.equal(text.encode("baé"), torch.tensor([3, 2, 4]))
    with pytest.raises(ValueError, match="text: expected characters of the file alone, which has 5, got 'xyz', too"):
        text.encode("zyxa")


def test_passages_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh")
    text = Text(tmp_path)
    for stride, starts in ((None, [0, 3]), (2, [0, 2, 4]), (1, [0, 1, 2, 3, 4])):
        pairs = text.examples(3, stride)
        assert pairs.x.tolist() == [[s, s + 1, s + 2] for s in starts]
        assert torch.equal(pairs.y, pairs.x + 1)
    with pytest.raises(ValueError, match="length: expected less than the 8 characters of the text, got 8"):
        text.examples(8)
    with pytest.raises(ValueError, match="stride: expected an integer >= 1 or None, got 0"):
        text.examples(3, 0)


def test_texts_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is missing: expected a text file, or a folder with one"):
        Text(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a file \*.txt is missing: .* holds nothing"):
        Text(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a.txt: expected a text in UTF-8, but .* Convert it first"):
        Text(tmp_path)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected one file .*, got a.txt, b.txt. Give the path of one"):
        Text(tmp_path)
    with pytest.raises(ValueError, match=r"b.txt: expected at least one character, got an empty file"):
        Text(tmp_path / "b.txt")
