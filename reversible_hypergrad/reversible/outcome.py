"""What moves of a state report, read from a GPU when somebody asks, and many in one go."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Outcome", "hash_of", "is_late", "read"]


class Outcome:
    """What a move found: a hash of the part of the state that it wrote, and per tensor flags and what its integers use.

    Of a state on the CPU the numbers are there at once. On a GPU the op has only been queued: the first look waits for it. So
    look where the host waits anyway, and :func:`read` all that have come together by then: one wait and one copy per device,
    instead of one per outcome. Some 8 bytes per tensor and slot stay on the GPU until then.

    A flagged move stays exactly invertible however late its flags are read, but undoing it takes the gradients that it had.
    """

    __slots__ = ("_numbers", "_tensors", "_words")

    def __init__(self, words: Tensor, tensors: int) -> None:
        """
        Args:
            words: the op's outcome, int64; not to be written again while it is on a GPU.
            tensors: how many there are.
        """
        self._words: Tensor | None = words
        self._tensors = tensors
        self._numbers: list[int] = []
        if not is_late(words.device):
            self._take(words.tolist())

    @property
    def hash(self) -> int:
        self._read()
        return self._numbers[0]

    @property
    def flags(self) -> list[int]:
        """One word per tensor; see csrc/core/fixed_point.h."""
        self._read()
        return self._numbers[1 :: self._row]

    @property
    def used(self) -> list[list[int]]:
        """Of a step: per tensor, the bits that each slot's integers need, without their sign; the weight last."""
        self._read()
        row, numbers = self._row, self._numbers
        rows = [numbers[2 + i * row : 1 + (i + 1) * row] for i in range(self._tensors)]
        return [[max(0, (word % 2**64).bit_length() - 1) for word in words] for words in rows]

    @property
    def is_read(self) -> bool:
        return self._words is None

    @property
    def _row(self) -> int:
        return max(1, (len(self._numbers) - 1) // max(self._tensors, 1))

    def _read(self) -> None:
        if self._words is not None:
            read([self])

    def _take(self, numbers: list[int]) -> None:
        self._numbers, self._words = numbers, None


def is_late(device: torch.device) -> bool:
    """Whether moves on ``device`` are only queued when their ops return."""
    return device.type != "cpu"


def hash_of(hash_: int | Outcome | None) -> int | None:
    """The number itself, of a hash or of who knows it."""
    return hash_.hash if isinstance(hash_, Outcome) else hash_


def read(outcomes: Iterable[Outcome]) -> None:
    """Brings the numbers of ``outcomes`` to the host; afterwards none of them waits any more. One wait per device."""
    waiting: dict[torch.device, list[tuple[Outcome, Tensor]]] = {}
    for outcome in dict.fromkeys(outcomes):
        if outcome._words is not None:
            waiting.setdefault(outcome._words.device, []).append((outcome, outcome._words))
    for pairs in waiting.values():
        numbers = torch.cat([words for _, words in pairs]).tolist()
        for outcome, words in pairs:
            outcome._take(numbers[: words.numel()])
            del numbers[: words.numel()]
