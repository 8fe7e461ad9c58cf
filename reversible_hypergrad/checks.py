"""Checks of arguments that many places make."""

import operator
from typing import Any

__all__ = ["as_integer", "check_integer"]


def check_integer(name: str, value: Any, least: int | None = None, otherwise: str = "") -> None:
    """Refuses what is no integer, or too small a one.

    Args:
        name: of the argument, which the message begins with.
        value: what came. True and False are no integers here.
        least: the smallest that will do; None if any will.
        otherwise: what else the argument may be, which the caller has looked for before, such as "None".

    Raises:
        TypeError: for something else than an int.
        ValueError: for an int below ``least``.

    >>> check_integer("every", 1, least=1)
    >>> check_integer("every", 0, least=1, otherwise="None")
    Traceback (most recent call last):
    ValueError: every: expected an integer >= 1 or None, got 0
    """
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and (least is None or value >= least):
        return
    expected = "an integer" + (f" >= {least}" if least is not None else "") + (f" or {otherwise}" if otherwise else "")
    raise (ValueError if is_integer else TypeError)(f"{name}: expected {expected}, got {value!r}")


def as_integer(name: str, value: Any) -> int:
    """An integer of Python, NumPy or torch as an int.

    Raises:
        TypeError: for anything else, whole floats and bools included, which conversions would truncate or take.

    >>> as_integer("shift", 3.0)
    Traceback (most recent call last):
    TypeError: shift: expected an integer, got 3.0
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected an integer, got {value!r}")
