"""Every example in a docstring, in the README or on a page of docs/ runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import reversible_hypergrad

COMPILED = {"reversible_hypergrad._C", "reversible_hypergrad._core"}
FOUND = sorted(
    info.name
    for info in pkgutil.walk_packages(reversible_hypergrad.__path__, "reversible_hypergrad.")
    if info.name not in COMPILED and not info.name.endswith("__main__")  # which would run on import
)
MODULES = ["reversible_hypergrad", *FOUND]
ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))] if path.exists()]


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    """Two processes of tests with two threads each would wait for each other: small examples take ten times as long."""
    set_num_threads(1)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module):
        messages: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=messages.append)
        assert not messages, "".join(messages)


def test_the_finder_finds_examples() -> None:
    """Guards the test above against finding nothing."""
    tests = [t for name in MODULES for t in doctest.DocTestFinder().find(importlib.import_module(name)) if t.examples]
    assert len(tests) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks opened by ```python alone; one that is not to be run says so on that line, as in ```python no-run."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": "__main__"}
    for match in re.finditer(r"^```python[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(1)].count("\n")
        exec(compile("\n" * line + match[1], str(page), "exec"), namespace)
