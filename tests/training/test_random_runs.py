"""Random calls of ``train`` against an independent unroll, and calls that must be refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from drawn_refusals import WRONG, refused
from drawn_runs import DrawnRun
from run_comparison import Comparison, compare
from textbook_rules import RULES
from torch import Tensor

ALL, SOME, CHUNK = 1000, 20, 50


def check(compared: list[Comparison]) -> None:
    """Guards the comparison itself: most runs are compared, within bounds that a wrong formula would leave."""
    done = [one for one in compared if not one.refused and not one.diverged]
    assert len(done) > 0.75 * len(compared)
    assert sum(one.tight for one in done) > 0.9 * sum(one.compared for one in done)


def test_some() -> None:
    check([compare(seed) for seed in range(SOME)])


@pytest.mark.parametrize("rule", ["SGD", "AdamW", "LARS"])
def test_a_wrong_derivative_is_found(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """One that is off by 1e-7 per step, in a textbook whose values are right."""
    right = RULES[rule]

    def wrong(h: Any, t: int, g: Tensor, w: Tensor, z: dict[str, Tensor]) -> Tensor:
        return right(h, t, g, w, z) + 1e-7 * (w - w.detach())

    monkeypatch.setitem(RULES, rule, wrong)
    drawn = map(DrawnRun, itertools.count())
    seed = next(i for i, one in enumerate(drawn) if {r.name for r in one.rules.values()} == {rule} and not one.refusals())
    with pytest.raises(AssertionError, match="gradient of loss 0 by"):
        compare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, ALL, CHUNK))
def test_a_thousand(first: int) -> None:
    compared = [compare(seed) for seed in range(first, first + CHUNK)]
    check(compared)
    assert len({one.strategy for one in compared}) >= 5
    assert len({rule for one in compared for rule in one.rules}) >= 9


@pytest.mark.parametrize("kind", WRONG)
def test_refused(kind: str) -> None:
    refused(kind, list(WRONG).index(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_refused_in_any_run(kind: str) -> None:
    for seed in range(100, 120):
        refused(kind, seed)
