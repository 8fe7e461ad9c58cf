"""Ctrl-C at a line of the library's of one's choice."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import reversible_hypergrad as rh

LIBRARY = str(Path(rh.__file__).parent)


def lines_of(action: Callable[[], Any], opcodes: bool = False) -> list[tuple[str, int]]:
    """The lines of the library, and of functions named ``closure``, that run in ``action``, in order."""
    found: list[tuple[str, int]] = []
    with _traced(lambda frame: found.append((frame.f_code.co_filename, frame.f_lineno)), opcodes):
        action()
    return found


def first(lines: list[tuple[str, int]]) -> list[int]:
    """When each line runs for the first time."""
    return sorted({line: n for n, line in reversed(list(enumerate(lines)))}.values())


def interrupt_at(place: int, action: Callable[[], Any], number: int = signal.SIGINT, opcodes: bool = False) -> bool:
    """``action`` with a signal just before the ``place``-th of its lines. Whether it was interrupted."""
    left = place

    def send(frame: FrameType) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            signal.raise_signal(number)

    try:
        with _traced(send, opcodes):
            action()
    except KeyboardInterrupt:
        return True
    return False


@contextmanager
def _traced(line: Callable[[FrameType], None], opcodes: bool) -> Iterator[None]:
    wanted = "opcode" if opcodes else "line"

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not (frame.f_code.co_filename.startswith(LIBRARY) or frame.f_code.co_name == "closure"):
            return None
        frame.f_trace_opcodes = opcodes
        if event == wanted:
            line(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
