"""One thread at a time inside of runs, since their settings and random numbers are the whole process's."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turn"]

_lock = threading.Lock()
_inside: list[tuple["Turn", int]] = []  # whose turn it is, and the thread that has begun it; outermost first


class Turn:
    """A run's right to be inside; made where the run begins, and taken for each of its ways.

    Runs may be nested, as where a loss trains something itself: in the thread of the outer one, or in one of autograd's own, in
    which a GPU's backward is computed while the outer one's thread waits for it.

    Raises:
        RuntimeError: here and in ``taken``, if another thread is inside.
    """

    def __init__(self) -> None:
        self._outer: Turn | None = None
        with _lock:
            self._outer = self._innermost()

    @contextmanager
    def taken(self) -> Iterator[None]:
        with _lock:
            self._innermost()
            _inside.append((self, threading.get_ident()))
        try:
            yield
        finally:
            with _lock:
                _inside.pop()

    def _innermost(self) -> "Turn | None":
        """That which this one may be nested in; None if nobody is inside."""
        if not _inside:
            return None
        turn, thread = _inside[-1]
        # Python has not started autograd's threads, and so has no more than a placeholder of them.
        in_autograd = turn is self._outer and isinstance(threading.current_thread(), threading._DummyThread)
        if thread == threading.get_ident() or in_autograd:
            return turn
        raise RuntimeError(
            "another thread is inside of a run (rh.train, its backward, rh.check_replayable), which pins settings of the whole "
            "process (deterministic algorithms, number of threads) and seeds its random numbers, so two at a time would spoil "
            "each other. Let the threads take turns, with a lock around train and backward, or use processes"
        )
