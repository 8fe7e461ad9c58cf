"""Random journeys of every drop-in optimizer: groups, shapes, dtypes, settings and gradients of any size; steps, steps back,
saved and loaded states, boundaries, refused steps. After every step the weights are within the derived bound of the documented
formula, at the end torch's own optimizer in float64 is, and whatever is undone is as it was, to the last bit. A failure prints a
line that repeats it."""

from __future__ import annotations

from typing import Any

import pytest
from drop_in_journey import journey
from drop_ins import DROP_INS

by_name = pytest.mark.parametrize("name", DROP_INS)
CHUNK = 100


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Any) -> None:
    """These parameters are too small for two."""
    set_num_threads(1)


def take(name: str, seeds: range) -> None:
    taken = [journey(name, seed) for seed in seeds]
    assert sum(each.steps for each in taken) > 4 * len(seeds)
    # Guards the bound: for most weights it is far below what a wrong formula would change.
    assert sum(each.tight for each in taken) > 0.7 * sum(each.elements for each in taken)


@by_name
def test_some(name: str) -> None:
    take(name, range(4))


@pytest.mark.slow
@by_name
@pytest.mark.parametrize("first", range(0, 2000, CHUNK))
def test_two_thousand(name: str, first: int) -> None:
    take(name, range(first, first + CHUNK))
