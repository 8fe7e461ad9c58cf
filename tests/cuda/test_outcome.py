"""Outcomes: read at once on the CPU; of another device, when asked for and many in one copy."""

from __future__ import annotations

import pytest
import torch

from reversible_hypergrad.reversible.outcome import Outcome, read


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda", 0)


def elsewhere(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers).as_subclass(Elsewhere)


@pytest.fixture
def copies(monkeypatch):
    """How many words have been joined and brought to the host, each time."""
    sizes = []
    join = torch.cat
    monkeypatch.setattr(torch, "cat", lambda words: (sizes.append(sum(w.numel() for w in words)), join(words))[1])
    return sizes


def test_on_the_cpu_the_numbers_are_there_at_once(copies):
    words = torch.tensor([-5, 0, 7, 2**40, 2, -1, 8])
    outcome = Outcome(words, tensors=2)
    words.zero_()
    assert outcome.is_read
    assert (outcome.hash, outcome.flags) == (-5, [0, 2])
    # Z ^ (Z << 1) of all: its highest bit but the sign's.
    assert outcome.used == [[2, 40], [63, 3]]
    assert copies == []


def test_a_look_at_one_reads_that_one(copies):
    outcome, other = Outcome(elsewhere(7, 0, 4), 2), Outcome(elsewhere(8, 1), 1)
    assert copies == []
    assert outcome.flags == [0, 4]
    assert outcome.hash == 7
    assert outcome.is_read
    assert not other.is_read
    assert copies == [3]


def test_many_are_read_in_one_copy(copies):
    outcomes = [Outcome(elsewhere(2**62 + i, *[i] * i), i) for i in range(5)]
    read([outcomes[3]])
    read([*outcomes, outcomes[0]])
    assert copies == [4, 1 + 2 + 3 + 5]
    assert [o.hash for o in outcomes] == [2**62 + i for i in range(5)]
    assert [o.flags for o in outcomes] == [[i] * i for i in range(5)]
    read(outcomes)
    assert len(copies) == 2
