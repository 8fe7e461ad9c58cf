"""Shuffled epochs with random access by step."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from reversible_hypergrad import pytree
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.replay.environment import mix

__all__ = ["ReplayableLoader"]


class ReplayableLoader:
    """What a ``DataLoader`` with ``shuffle=True`` gives, but by step and as often as asked for.

    ``loader(step)`` is the batch of any step >= 0; step ``e * len(loader)`` begins epoch ``e``, which has a shuffle
    of its own. The same (seed, step) always gives the same examples, whatever was asked for before.

    Args:
        dataset: map-style: ``dataset[index]`` and ``len(dataset)``. Inside :func:`train` its own random augmentation by torch's,
            NumPy's or Python's global generators replays, since they are seeded before each step.
        batch_size: examples per batch, at least 1.
        seed: of the shuffles and of ``augment``.
        collate_fn: a list of examples -> a batch; torch's ``default_collate`` if None.
        shuffle: False keeps the dataset's order in every epoch.
        drop_last: whether an epoch's last, smaller batch is left out.
        augment: ``augment(batch, generator)`` -> batch, with a ``torch.Generator`` seeded by (seed, step).
        pin_memory: puts tensors into page-locked memory, for copies to a GPU behind the computation.
        prefetch: how many batches to make ahead, at least 0, in a thread, in the direction of the last two calls, forwards and
            backwards. That thread does not see the generators seeded by :func:`train`: use ``augment`` for randomness then.

    ``len(loader)`` is the number of batches of an epoch, and so the default of ``train(steps=...)``.

    Cost: one permutation of the dataset per epoch, and one held.

    Raises:
        TypeError: for a dataset without length or random access, and sizes that are no integers.
        ValueError: for sizes that are too small, and a dataset that makes no batch.

    >>> import reversible_hypergrad as rh
    >>> loader = rh.ReplayableLoader(range(10), batch_size=4, seed=1)
    >>> len(loader), bool((loader(7) == loader(7)).all()), len(loader(2))
    (3, True, 2)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        pin_memory: bool = False,
        prefetch: int = 0,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset: expected one with len() and random access by index, got {type(dataset).__name__}. An iterable "
                "dataset cannot give an example again: put its examples in a list"
            )
        check_integer("batch_size", batch_size, least=1)
        check_integer("prefetch", prefetch, least=0)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self.shuffle, self.drop_last, self.augment, self.pin_memory = shuffle, drop_last, augment, pin_memory
        self.prefetch = prefetch
        if len(self) == 0:
            raise ValueError(f"dataset: its {len(dataset)} examples make no batch of batch_size={batch_size}. Lower batch_size")
        self._order: tuple[int, Tensor] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._process = 0  # that the worker is in
        self._ahead: dict[int, Future[Any]] = {}
        self._last: int | None = None

    def __len__(self) -> int:
        examples = len(self.dataset)
        return examples // self.batch_size if self.drop_last else math.ceil(examples / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the first epoch."""
        return (self(step) for step in range(len(self)))

    def indices(self, step: int) -> list[int]:
        """Which examples of the dataset are in a batch.

        Args:
            step: whose batch, at least 0.
        """
        epoch, position = divmod(step, len(self))
        order = self._order
        if order is None or order[0] != epoch:
            count = len(self.dataset)
            generator = torch.Generator().manual_seed(mix(mix(self.seed) ^ epoch))
            order = (epoch, torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count))
            self._order = order
        chosen: list[int] = order[1][position * self.batch_size : (position + 1) * self.batch_size].tolist()
        return chosen

    def __call__(self, step: int) -> Any:
        check_integer("step", step)
        if step < 0:  # as of a list
            raise IndexError(f"step: expected an integer >= 0, got {step}")
        if not self.prefetch:
            return self._make(step)
        if self._worker is None or self._process != os.getpid():  # a forked process has no threads
            self._worker, self._ahead = ThreadPoolExecutor(1, thread_name_prefix="batches"), {}
            self._process = os.getpid()
        direction = -1 if self._last is not None and step < self._last else 1
        self._last = step
        future = self._ahead.pop(step, None) or self._worker.submit(self._make, step)
        wanted = [step + direction * k for k in range(1, self.prefetch + 1)]
        self._ahead = {s: f for s, f in self._ahead.items() if s in wanted}
        for ahead in wanted:
            if ahead >= 0 and ahead not in self._ahead:
                self._ahead[ahead] = self._worker.submit(self._make, ahead)
        return future.result()

    def __getitem__(self, step: int) -> Any:
        return self(step)

    def _make(self, step: int) -> Any:
        batch = self.collate_fn([self.dataset[i] for i in self.indices(step)])
        if self.augment is not None:
            batch = self.augment(batch, torch.Generator().manual_seed(mix(mix(self.seed) ^ ~step)))
        if self.pin_memory and torch.cuda.is_available():
            batch = pytree.map_tensors(Tensor.pin_memory, batch)
        return batch
