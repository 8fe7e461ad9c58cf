"""The docstrings' short form, spelled out for napoleon.

The code's docstrings let several entries of a section share a line::

    Args:
        lr, weight_decay: >= 0. momentum: in (0, 1].
    Raises:
        TypeError, ValueError: for arguments that make no sense. OverflowError: out of range.

Here each gets a line of its own, and what is no entry becomes a sentence after the section.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_ERROR = r"[A-Z]\w*(?:Error|Warning|Interrupt)"


def spell_out(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An ``autodoc-process-docstring`` listener: rewrites ``lines`` in place."""
    result: list[str] = []
    for header, block in _sections(lines):
        if header == "Raises:":
            _write(result, header, [" ".join(line.strip() for line in block)], _ERROR, several=False)
        elif header in ("Args:", "Attributes:"):
            names = "|".join(sorted(map(re.escape, _names_of(obj)), key=len, reverse=True)) or r"\w+"
            _write(result, header, _paragraphs(block), names, several=header == "Attributes:")
        else:
            result += [header] if header else []
            result += block
    lines[:] = result


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(header, the lines under it), where a header stands alone at the margin; the first header is empty."""
    header, block = "", []
    for line in lines:
        if line in ("Args:", "Raises:", "Attributes:") or (header and line and not line.startswith(" ")):
            yield header, block
            header, block = (line, []) if line.endswith(":") and " " not in line else ("", [line])
        else:
            block.append(line)
    yield header, block


def _paragraphs(block: list[str]) -> list[str]:
    """One string per entry: a line at the section's indentation and the deeper ones that follow it."""
    filled = [line for line in block if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in filled), default=0)
    entries: list[str] = []
    for line in filled:
        if len(line) - len(line.lstrip()) == margin or not entries:
            entries.append(line.strip())
        else:
            entries[-1] += " " + line.strip()
    return entries


def _write(result: list[str], header: str, entries: list[str], names: str, several: bool) -> None:
    start = re.compile(rf"(?:^|(?<=[.;] ))(?P<names>(?:{names})(?:, (?:{names}))*): ")
    fields, sentences = [], []
    for entry in entries:
        found = list(start.finditer(entry))
        sentences += [entry[: found[0].start()].strip() if found else entry]
        ends = [*(match.start() for match in found[1:]), len(entry)]
        for here, end in zip(found, ends, strict=False):
            text = entry[here.end() : end].strip()
            labels = here["names"].split(", ") if several or header == "Raises:" else [here["names"]]
            fields += [f"    {label}: {text}" for label in labels]
    if fields:
        result += [header, *fields, ""]
    for sentence in filter(None, sentences):
        result += [f"Raises: {sentence}" if header == "Raises:" and not fields else sentence, ""]


def _names_of(obj: Any) -> list[str]:
    """What entries of a class or function may be called."""
    names = list(getattr(obj, "__annotations__", {})) + list(vars(obj) if inspect.isclass(obj) else ())
    with contextlib.suppress(TypeError, ValueError):
        names += list(inspect.signature(obj).parameters)
    return names


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", spell_out, priority=400)  # before napoleon's 500
