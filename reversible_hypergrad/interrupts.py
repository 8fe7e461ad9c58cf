"""Ctrl-C, and whatever else the handler of a signal may raise, waits while a state is between two."""

import _signal  # type: ignore[import-not-found]
import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ["Uninterrupted", "uninterrupted"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Those whose handlers are known to raise: interrupts, time limits, preemption, torch's word that a DataLoader's worker has died.
_NAMES = ("INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "XCPU", "CHLD", "BREAK")
_SIGNALS = tuple(int(getattr(signal, f"SIG{name}")) for name in _NAMES if hasattr(signal, f"SIG{name}"))
# The functions beneath those of the module `signal`, which turn numbers into enums and back: that takes ten times as long.
_get, _set = _signal.getsignal, _signal.signal


class Uninterrupted:
    """As a context: signals that have a handler in Python are noted, and sent once more when the block is over, to the handlers
    of before. So what these raise is raised behind the block, never inside.

    Only the main thread runs handlers, so in others there is nothing to hold back. Exceptions that a tracer or
    ``PyThreadState_SetAsyncExc`` puts into a thread are no signals: they are raised where they come. About 2 us.
    """

    __slots__ = ("_arrived", "_handlers")

    def __init__(self) -> None:
        self._handlers: list[tuple[int, Any]] = []  # of the signals that are held
        self._arrived: list[int] = []

    def __enter__(self) -> "Uninterrupted":
        self._hold()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def but_for(self) -> "_ButFor":
        """A block inside, such as a call of the user's, in which signals come through. Behind it they are held again, also if it
        ends with an exception."""
        return _ButFor(self)

    def _hold(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        try:
            for number in _SIGNALS:
                handler = _get(number)
                if callable(handler):
                    self._handlers.append((number, handler))
                    _set(number, self._note)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        """A handler that is back may raise before the next one is: then the rest is done all the same."""
        try:
            while self._handlers:
                number, handler = self._handlers[-1]
                if _get(number) == self._note:
                    _set(number, handler)
                self._handlers.pop()
            while self._arrived:
                signal.raise_signal(self._arrived.pop(0))
        finally:
            if self._handlers or self._arrived:
                self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number not in self._arrived:
            self._arrived.append(number)


class _ButFor:
    """No generator: one that is left before its first line would hold signals when it is collected, whenever that is."""

    __slots__ = ("_outer",)

    def __init__(self, outer: Uninterrupted) -> None:
        self._outer = outer

    def __enter__(self) -> None:
        try:
            self._outer._release()
        except BaseException:
            self._outer._hold()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._outer._hold()
        except BaseException:  # from a signal just before: what follows must still be undisturbed
            self._outer._hold()
            raise


def uninterrupted(function: _Function) -> _Function:
    """The whole function is such a block."""

    @functools.wraps(function)
    def held(*args: Any, **kwargs: Any) -> Any:
        with Uninterrupted():
            return function(*args, **kwargs)

    return held  # type: ignore[return-value]
