"""An integer of at least so much: one message, and one type of error per kind of fault."""

from __future__ import annotations

from typing import Any

import pytest

from reversible_hypergrad.checks import check_integer


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_other_types(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^every: expected an integer >= 1, got {value!r}$"):
        check_integer("every", value, least=1)


def test_too_small() -> None:
    with pytest.raises(ValueError, match=r"^every: expected an integer >= 1 or None, got 0$"):
        check_integer("every", 0, least=1, otherwise="None")


def test_any_integer() -> None:
    check_integer("seed", -(2**80))
    with pytest.raises(TypeError, match=r"^seed: expected an integer, got 0.5$"):
        check_integer("seed", 0.5)
