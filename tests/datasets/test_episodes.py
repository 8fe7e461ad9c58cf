"""Few-shot episodes: pure functions of their number, without an image or a class twice."""

from __future__ import annotations

import pytest
import torch

from reversible_hypergrad.datasets import Episodes

COUNTS = [5, 4, 7, 6]


def made(**options):
    """Four classes named 3, 10, 20, 30, shuffled; an image's pixels are distinct, and its first is its number."""
    labels = torch.tensor([3, 10, 20, 30]).repeat_interleave(torch.tensor(COUNTS))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = (torch.arange(len(labels))[:, None] + 0.01 * torch.arange(9)).reshape(-1, 1, 3, 3)
    return images, labels[order], Episodes(images, labels[order], **{"way": 3, "shot": 2, "queries": 2, **options})


def fields(episode):
    return (episode.support, episode.y, episode.query, episode.y_query)


def test_an_episode_has_whole_classes_and_no_image_twice():
    images, labels, episodes = made()
    seen = set()
    for k in range(40):
        episode = episodes.episode(k)
        assert episode.support.shape == episode.query.shape == (6, 1, 3, 3)
        assert episode.y.tolist() == episode.y_query.tolist() == [0, 0, 1, 1, 2, 2]
        support, query = (x[:, 0, 0, 0].long() for x in (episode.support, episode.query))
        assert len(set(torch.cat([support, query]).tolist())) == 12
        assert torch.equal(episode.query, images[query])
        kinds = labels[support].view(3, 2)
        assert torch.equal(kinds[:, 0], kinds[:, 1])
        assert torch.equal(kinds, labels[query].view(3, 2))
        assert len(set(kinds[:, 0].tolist())) == 3
        seen |= {tuple(kinds[:, 0].tolist())}
    assert len(seen) > 12  # of the 24 that there are: classes and their order vary


def test_every_image_of_a_class_is_drawn():
    _, _, episodes = made(way=4)
    drawn = torch.cat([episodes.episode(k).support[:, 0, 0, 0].long() for k in range(60)])
    assert set(drawn.tolist()) == set(range(sum(COUNTS)))


def test_an_episode_depends_on_seed_and_number_alone():
    _, _, episodes = made(seed=5)
    forwards = [fields(episodes.episode(k)) for k in range(4)]
    torch.manual_seed(99)
    _, _, again = made(seed=5)
    for k in (3, 0, 2, 1):
        assert all(torch.equal(a, b) for a, b in zip(fields(again.episode(k)), forwards[k], strict=True))
    assert not torch.equal(forwards[0][0], forwards[1][0])
    assert not torch.equal(made(seed=6)[2].episode(0).support, forwards[0][0])


def test_batches_are_stacked_episodes_without_a_common_one():
    _, _, episodes = made()
    for k in (0, 2):
        batch = episodes.batch(k, 3)
        for i in range(3):
            assert all(torch.equal(a[i], b) for a, b in zip(fields(batch), fields(episodes.episode(3 * k + i)), strict=True))


def test_turned_classes_are_classes_of_their_own():
    """All 16 in one episode: each of the four classes in each of the four directions."""
    images, labels, episodes = made(way=16, shot=1, queries=3, rotations=True)
    assert episodes.classes == 16
    episode = episodes.episode(0)
    found = set()
    for c in range(16):
        own = torch.cat([episode.support[c : c + 1], episode.query[3 * c : 3 * c + 3]])
        numbers = own.amin((1, 2, 3)).long()  # the first pixel, wherever it has gone
        turns = [t for t in range(4) if torch.equal(own, images[numbers].rot90(t, (2, 3)))]
        assert len(turns) == 1
        assert len(set(labels[numbers].tolist())) == 1
        found.add((int(labels[numbers[0]]), turns[0]))
    assert len(found) == 16


def test_bytes_are_scaled_and_floats_are_not():
    images, labels = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 4, 4), torch.arange(16) // 8
    episode = Episodes(images, labels, 2, 4, 4).episode(0)
    assert (episode.support.dtype, episode.support.max() <= 1) == (torch.float32, True)
    assert sorted((255 * torch.cat([episode.support, episode.query])).round().flatten().tolist()) == list(range(256))
    assert Episodes(images.double(), labels, 2, 4, 4).episode(0).query.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"way": 1}, ValueError, "way: expected an integer >= 2, got 1"),
        ({"shot": 0}, ValueError, "shot: expected an integer >= 1, got 0"),
        ({"queries": 1.0}, TypeError, "queries: expected an integer >= 1, got 1.0"),
        ({"seed": None}, TypeError, "seed: expected an integer, got None"),
        ({"way": 5}, ValueError, "way: expected at most 4, the classes that there are, got 5"),
        ({"queries": 3}, ValueError, r"shot \+ queries: expected at most 4, the images of class 10, got 2 \+ 3"),
    ],
)
def test_numbers_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        made(**options)


def test_images_that_do_not_fit():
    labels = torch.arange(8) // 4
    with pytest.raises(ValueError, match=r"expected one target per input, got shapes \(7, 1, 3, 3\) and \(8,\)"):
        Episodes(torch.rand(7, 1, 3, 3), labels, 2, 1, 1)
    with pytest.raises(ValueError, match=r"images: expected uint8 or floating point .* got torch.float32 \(8, 3, 3\)"):
        Episodes(torch.rand(8, 3, 3), labels, 2, 1, 1)
    with pytest.raises(ValueError, match="images: expected square ones, since rotations=True, got 3x4 pixels"):
        Episodes(torch.rand(8, 1, 3, 4), labels, 2, 1, 1, rotations=True)
    with pytest.raises(ValueError, match="k: expected an integer >= 0, got -1"):
        Episodes(torch.rand(8, 1, 3, 4), labels, 2, 1, 1).episode(-1)
