"""Few-shot episodes: small classification problems of classes that are drawn anew."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.datasets.examples import Examples, scaled
from reversible_hypergrad.replay.environment import mix

__all__ = ["Episode", "Episodes"]


@dataclass(frozen=True)
class Episode:
    """One few-shot problem, or several of the same sizes with one more dimension in front.

    Attributes:
        support: images to learn from, float (way * shot, channels, rows, columns), class by class.
        y: their labels, int64 (way * shot,), from 0 to way - 1.
        query: other images of the same classes, float (way * queries, channels, rows, columns), class by class.
        y_query: their labels, int64 (way * queries,).
    """

    support: Tensor
    y: Tensor
    query: Tensor
    y_query: Tensor


class Episodes:
    """Random access to few-shot episodes: ``episode(k)`` depends on ``seed`` and ``k`` alone, so that runs replay.

    An episode draws ``way`` classes without repetition, and of each of them ``shot + queries`` images without repetition, as in
    Vinyals et al. 2016, "Matching networks for one shot learning".

    Args:
        images: (examples, channels, rows, columns); uint8, which episodes give as float32 in [0, 1], or floating point as it is.
        labels: int64 (examples,), any numbers; one class each.
        way: classes per episode, at least 2.
        shot: images per class to learn from, at least 1.
        queries: images per class to be judged by, at least 1.
        rotations: each class turned by 90, 180 and 270 degrees counts as three more classes. Images must be square.
        seed: of all episodes.

    Attributes:
        classes: how many an episode draws from, turned ones counted.

    Cost: ``images`` are held as they are, and what an episode takes is copied.

    Raises:
        TypeError, ValueError: for numbers that are too small, fewer classes than ``way``, a class of fewer than
            ``shot + queries`` images, shapes that do not fit, images that are not square and shall be turned.

    >>> import torch
    >>> from reversible_hypergrad.datasets import Episodes
    >>> images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) // 6
    >>> episodes = Episodes(images, labels, way=5, shot=1, queries=3, seed=0)
    >>> one, four = episodes.episode(7), episodes.batch(2, count=4)
    >>> one.support.shape, one.y_query.shape, four.query.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([15]), torch.Size([4, 15, 1, 8, 8]))
    >>> bool((four.query[1] == episodes.episode(9).query).all())
    True
    """

    def __init__(
        self, images: Tensor, labels: Tensor, way: int, shot: int, queries: int, *, rotations: bool = False, seed: int = 0
    ) -> None:
        check_integer("way", way, least=2)
        check_integer("shot", shot, least=1)
        check_integer("queries", queries, least=1)
        check_integer("seed", seed)
        Examples(images, labels)
        if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(
                "images: expected uint8 or floating point (examples, channels, rows, columns), got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        if rotations and images.shape[2] != images.shape[3]:
            raise ValueError(
                f"images: expected square ones, since rotations=True, got {images.shape[2]}x{images.shape[3]} pixels"
            )
        self.images, self.way, self.shot, self.queries, self.seed = images, way, shot, queries, seed
        values, counts = torch.unique(labels, return_counts=True)
        self._members = torch.split(labels.argsort(stable=True), counts.tolist())
        self._turns = 4 if rotations else 1
        self.classes = self._turns * len(values)
        self._check_sizes(values, counts)

    def episode(self, k: int) -> Episode:
        """The episode of any number ``k`` >= 0.

        Raises:
            TypeError, ValueError: for a ``k`` that is no integer of at least 0.
        """
        check_integer("k", k, least=0)
        generator = torch.Generator().manual_seed(mix(mix(self.seed) ^ k))
        chosen = torch.randperm(self.classes, generator=generator)[: self.way]
        support, query = [], []
        for number in chosen.tolist():
            kind, turns = divmod(number, self._turns)
            members = self._members[kind]
            drawn = members[torch.randperm(len(members), generator=generator)[: self.shot + self.queries]]
            images = self.images[drawn].rot90(turns, (2, 3))
            support.append(images[: self.shot])
            query.append(images[self.shot :])
        labels = torch.arange(self.way)
        return Episode(
            self._as_floats(torch.cat(support)),
            labels.repeat_interleave(self.shot),
            self._as_floats(torch.cat(query)),
            labels.repeat_interleave(self.queries),
        )

    def batch(self, k: int, count: int) -> Episode:
        """Batch number ``k`` >= 0 of ``count`` episodes: ``episode(k * count)`` and those after it, stacked, so that batches of
        one size have no episode in common. Every tensor has the shape of one episode's with ``count`` in front.

        Raises:
            TypeError, ValueError: for a ``k`` that is no integer of at least 0, or a ``count`` of at least 1.
        """
        check_integer("k", k, least=0)
        check_integer("count", count, least=1)
        episodes = [self.episode(k * count + i) for i in range(count)]
        return Episode(
            torch.stack([episode.support for episode in episodes]),
            torch.stack([episode.y for episode in episodes]),
            torch.stack([episode.query for episode in episodes]),
            torch.stack([episode.y_query for episode in episodes]),
        )

    def _as_floats(self, images: Tensor) -> Tensor:
        return scaled(images) if images.dtype == torch.uint8 else images

    def _check_sizes(self, values: Tensor, counts: Tensor) -> None:
        if self.classes < self.way:
            turned = ", turned ones counted" if self._turns > 1 else ""
            raise ValueError(f"way: expected at most {self.classes}, the classes that there are{turned}, got {self.way}")
        if int(counts.min()) < self.shot + self.queries:
            raise ValueError(
                f"shot + queries: expected at most {int(counts.min())}, the images of class {int(values[counts.argmin()])}, got "
                f"{self.shot} + {self.queries}"
            )
