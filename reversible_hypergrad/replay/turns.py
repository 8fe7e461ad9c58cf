"""One thread at a time inside of runs, since their settings and random numbers are the whole process's."""

import os
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
        RuntimeError: here and in ``taken``, if another thread is inside; in ``taken``, if this is a child of the process in which
            it was made.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._outer: Turn | None = None
        with _lock:
            self._outer = self._innermost()

    @contextmanager
    def taken(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise RuntimeError(
                "backward was called in a forked process, through a run of the process that it was forked from. A fork has none "
                "of its threads, so that torch, or the run's own reader of files, would wait for them for ever. Call backward in "
                "the process that trained, or train in the new one, started by torch.multiprocessing with the method 'spawn'"
            )
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


def _begin_anew() -> None:
    """In a forked process, whose only thread is the one that has forked."""
    global _lock
    _lock = threading.Lock()
    _inside[:] = [(turn, thread) for turn, thread in _inside if thread == threading.get_ident()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
