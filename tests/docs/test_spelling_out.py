"""The docstrings' short form reaches the reference spelled out, see docs/docstrings.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "docs" / "docstrings.py"


def spelled_out(obj: object, text: str) -> list[str]:
    spec = importlib.util.spec_from_file_location("docstrings", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = text.split("\n")
    module.spell_out(None, "function", "f", obj, None, lines)
    return [line for line in lines if line]


def f(lr: float, momentum: float) -> None: ...


def test_entries_that_share_a_line_are_parted() -> None:
    text = """One line.

Args:
    lr: at least 0; as in torch: a number. momentum: in (0, 1],
        whatever it is.

Raises:
    TypeError, ValueError: for nonsense. OverflowError: beyond the
    range. Nothing has changed then.

Cost: none."""
    assert spelled_out(f, text) == [
        "One line.",
        "Args:",
        "    lr: at least 0; as in torch: a number.",
        "    momentum: in (0, 1], whatever it is.",
        "Raises:",
        "    TypeError: for nonsense.",
        "    ValueError: for nonsense.",
        "    OverflowError: beyond the range. Nothing has changed then.",
        "Cost: none.",
    ]


def test_what_is_no_entry_stays_a_sentence() -> None:
    text = """One line.

Raises:
    What the loss raises, and TypeError for other things."""
    assert spelled_out(f, text) == ["One line.", "Raises: What the loss raises, and TypeError for other things."]


def test_names_of_attributes_are_listed_one_by_one() -> None:
    class Report:
        steps: int
        weights: int

    text = """One line.

Attributes:
    steps, weights: of the run."""
    assert spelled_out(Report, text) == ["One line.", "Attributes:", "    steps: of the run.", "    weights: of the run."]
