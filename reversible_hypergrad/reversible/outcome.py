"""What moves of a state report, read from a GPU when somebody asks, and many in one go."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Outcome", "hash_of", "is_late", "read"]


class Outcome:
    """A hash of the part of the state that an op wrote, and flags (see csrc/core/sgd.h) per tensor.

    Of a state on the CPU the numbers are there at once. On a GPU the op has only been queued: the first look at ``hash`` or
    ``flags`` waits for it. So look where the host waits anyway, and :func:`read` all that have come together by then: one
    wait and one copy per device, instead of one per outcome. 8 bytes per tensor, and 8, stay on the GPU until then.

    A flagged move stays exactly invertible however late its flags are read, but undoing it takes the gradients that it had.
    """

    __slots__ = ("_flags", "_hash", "_words")

    def __init__(self, words: Tensor) -> None:
        """``words``: the op's outcome, int64; not to be written again while it is on a GPU."""
        self._words: Tensor | None = words
        self._hash = 0
        self._flags: list[int] = []
        if not is_late(words.device):
            self._take(words.tolist())

    @property
    def hash(self) -> int:
        if self._words is not None:
            read([self])
        return self._hash

    @property
    def flags(self) -> list[int]:
        if self._words is not None:
            read([self])
        return self._flags

    @property
    def is_read(self) -> bool:
        return self._words is None

    def _take(self, numbers: list[int]) -> None:
        self._hash, *self._flags = numbers
        self._words = None


def is_late(device: torch.device) -> bool:
    """Whether moves on ``device`` are only queued when their ops return."""
    return device.type != "cpu"


def hash_of(hash_: int | Outcome | None) -> int | None:
    """The number itself, of a hash or of who knows it."""
    return hash_.hash if isinstance(hash_, Outcome) else hash_


def read(outcomes: Iterable[Outcome]) -> None:
    """Brings the numbers of ``outcomes`` to the host; afterwards none of them waits any more. One wait per device."""
    waiting: dict[torch.device, list[tuple[Outcome, Tensor]]] = {}
    for outcome in outcomes:
        if outcome._words is not None:
            waiting.setdefault(outcome._words.device, []).append((outcome, outcome._words))
    for pairs in waiting.values():
        numbers = torch.cat([words for _, words in pairs]).tolist()
        for outcome, words in pairs:
            outcome._take(numbers[: words.numel()])
            del numbers[: words.numel()]
