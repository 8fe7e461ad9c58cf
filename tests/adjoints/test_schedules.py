"""Which states are kept, and how often a step is trained again: against optima that are computed in another way."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.adjoints import snapshots
from reversible_hypergrad.adjoints.checkpoint import Segments
from reversible_hypergrad.adjoints.cost import RunSize
from reversible_hypergrad.adjoints.per_step import PerStep
from reversible_hypergrad.adjoints.recursive_checkpoint import Binomial, Tree
from reversible_hypergrad.adjoints.scheduled import scheduled_cost
from reversible_hypergrad.adjoints.segments import level

WEIGHTS = 16  # as many as a part of the flat vector holds, so that bytes come out even


def walk(schedule, steps):
    """What a run under a schedule does: steps trained again, the most states kept, the last one before the way back, and how
    often each step was trained again."""
    kept = list(schedule.keep(0, steps, 0))
    last, most, again = (kept[-1] if kept else 0), len(kept), [0] * steps
    for step in reversed(range(steps)):
        at = kept[-1] if kept else 0
        if at < step:
            more = list(schedule.keep(at, step, len(kept)))
            assert all(a < b for a, b in itertools.pairwise([at, *more, step]))
            kept += more
            most = max(most, len(kept))
            for between in range(at, step):
                again[between] += 1
        elif kept:
            kept.pop()
    assert not kept
    return sum(again), most, last, again


SCHEDULES = {
    "all": lambda steps: snapshots._All(),
    "segments": lambda steps: Segments(rh.Checkpoint().starts(steps, False)),
    "segments of 4": lambda steps: Segments(range(0, steps, 4)),
    "tree": lambda steps: Tree(2),
    "tree of 3": lambda steps: Tree(3),
    **{f"{slots} slots": lambda steps, slots=slots: Binomial(slots) for slots in (1, 2, 5)},
}


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_cost_is_that_of_the_walk(kind, with_states):
    """Which goes through all steps, and counts what is held. Without states only those from which training goes on have them."""
    for steps in (1, 2, 3, 4, 5, 9, 31, 100):
        schedule = SCHEDULES[kind](steps)
        again, most, _, _ = walk(schedule, steps)
        size = RunSize(weights=1, steps=steps, factors=[(1, [0.9])], with_states=with_states)
        cost = scheduled_cost(schedule, size)
        assert cost.time == pytest.approx(size.time(again))
        kept = (cost.bytes - size.float_bytes) / size.vector_bytes
        assert kept == 2 * most if with_states else most <= kept <= 2 * most


def test_costs_of_ten_million_steps():
    """In closed form, or as few calls as there are different parts of the walk."""
    size = RunSize(weights=10, steps=10**7, factors=[(10, [0.9])])
    assert scheduled_cost(SCHEDULES["all"](0), size).bytes == size.float_bytes + (10**7 - 1) * size.vector_bytes
    # A tree of two halves each step at most once per level.
    assert scheduled_cost(Tree(2), size).time <= size.time(24 * 10**7)
    r = next(r for r in itertools.count(1) if math.comb(101 + r, r) >= 10**7)
    assert size.time((r - 2) * 10**7) < scheduled_cost(Binomial(100), size).time <= size.time(r * 10**7)


def run(adjoint, steps, with_velocity=True):
    """A learning rate's gradient looks at velocities, a decay's does not."""
    torch.manual_seed(0)
    model = nn.Linear(WEIGHTS, 1, bias=False)
    x = torch.randn(steps, 4, WEIGHTS)
    learned = torch.tensor(0.01, requires_grad=True)
    optimizer = rh.SGD(lr=learned) if with_velocity else rh.SGD(lr=0.01, weight_decay=learned)
    trained = rh.train(model, lambda m, batch, h: m(batch).square().mean(), x, optimizer=optimizer, adjoint=adjoint)
    trained["weight"].sum().backward()
    assert trained.report.restored
    return trained.report


@functools.cache
def fewest(steps, slots):
    """Steps trained, the first run up to the last kept state included, to walk back with so many slots."""
    if steps <= 1:
        return 0
    if slots == 0:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, slots - 1) + fewest(m, slots) for m in range(1, steps))


@pytest.mark.parametrize("slots", range(1, 9))
def test_slots_are_used_as_well_as_possible(slots):
    for steps in range(61):
        again, most, last, each = walk(rh.RecursiveCheckpoint(slots=slots).schedule(), steps)
        assert again + last == fewest(steps, slots), steps
        assert most <= slots
        # What the documentation promises: the least r with binomial(slots + 1 + r, r) >= T.
        r = next(r for r in itertools.count(1) if math.comb(slots + 1 + r, r) >= steps)
        assert max(each, default=0) <= r


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("steps", [1, 2, 3, 17, 30])
def test_a_run_does_what_the_schedule_says(steps, slots):
    adjoint = rh.RecursiveCheckpoint(slots=slots)
    report = run(adjoint, steps)
    again, most, _, _ = walk(adjoint.schedule(), steps)
    assert report.steps_again == again
    assert report.kept_bytes == most * 2 * 4 * WEIGHTS
    assert report.restored


@pytest.mark.parametrize("arity", [2, 3, 4, 7])
def test_trees(arity):
    for steps in [*range(1, 70), 343, 1000]:
        depth = next(d for d in itertools.count() if arity**d >= steps)
        again, most, _, each = walk(rh.RecursiveCheckpoint(arity=arity).schedule(), steps)
        assert most <= (arity - 1) * depth
        assert max(each) <= depth
        if steps == arity**depth and depth:
            assert most == (arity - 1) * depth
            # A node of arity^d steps trains all its parts but the last again, each up to its last step, and then goes on
            # within them: d*(arity - 1)*arity^(d-1) - arity^d + 1 in all.
            assert again == depth * (arity - 1) * arity ** (depth - 1) - steps + 1


def test_figures_of_the_documentation():
    again, most, _, _ = walk(rh.RecursiveCheckpoint().schedule(), 2000)
    assert most == 10
    assert again / 2000 == pytest.approx(4.4, abs=0.05)
    again, most, _, _ = walk(rh.RecursiveCheckpoint(slots=10).schedule(), 2000)
    assert most == 10
    assert again / 2000 == pytest.approx(3.1, abs=0.05)


@pytest.mark.parametrize("arity", [2, 3])
@pytest.mark.parametrize("steps", [1, 2, 9, 16, 29])
def test_a_run_does_what_the_tree_says(steps, arity):
    adjoint = rh.RecursiveCheckpoint(arity=arity)
    report = run(adjoint, steps)
    again, most, _, _ = walk(adjoint.schedule(), steps)
    assert report.steps_again == again
    assert report.kept_bytes == most * 2 * 4 * WEIGHTS


# Segments


def peak(costs, state, starts, held):
    ends = [*starts[1:], len(costs)]
    return max(state * held(j) + sum(costs[a:b]) for j, (a, b) in enumerate(zip(starts, ends, strict=True)))


@pytest.mark.parametrize("state", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("held", [lambda j: j, lambda j: j + 1, lambda j: 0], ids=["before", "with own", "none"])
@pytest.mark.parametrize("uneven", [False, True])
def test_level_against_all_cuts(state, held, uneven):
    for steps in range(1, 12):
        costs = [1.0 + (0.3 * (j * j % 5) if uneven else 0.0) for j in range(steps)]
        starts, found = level(PerStep(costs, steps), state, held)
        assert starts[0] == 0
        assert all(a < b for a, b in itertools.pairwise([*starts, steps]))
        assert found == pytest.approx(peak(costs, state, starts, held), rel=1e-12)
        cuts = (cut for n in range(steps) for cut in itertools.combinations(range(1, steps), n))
        # The search by bisection stops at a millionth.
        assert found <= min(peak(costs, state, [0, *cut], held) for cut in cuts) + 1e-5 * sum(costs)


def test_level_without_steps():
    assert level(PerStep([], 0), 1.0, lambda j: j) == ([0], 0.0)


@pytest.mark.parametrize("with_velocity", [False, True])
def test_unequal_segments_take_no_more_than_equal_ones(with_velocity):
    """But for one snapshot: the last segment keeps one more than the others, which the cut does not look at."""

    def kept(adjoint, steps):
        return run(adjoint, steps, with_velocity).kept_bytes

    for steps in (3, 10, 40):
        equal = min(kept(rh.Checkpoint(every), steps) for every in {1, 2, 3, 5, 7, 10, steps})
        assert kept(rh.Checkpoint(), steps) <= equal + (0 if steps == 40 else 4 * WEIGHTS)


@pytest.mark.parametrize("every", [1, 4, 7, 30, 100])
def test_a_run_does_what_the_segments_say(every):
    adjoint = rh.Checkpoint(every)
    report = run(adjoint, 30)
    again, most, _, each = walk(Segments(adjoint.starts(30, True)), 30)
    assert report.steps_again == again
    assert report.kept_bytes == most * 2 * 4 * WEIGHTS
    assert max(each) <= 1


def test_sqrt_of_the_steps():
    """The documented cost: 8 sqrt(T) bytes per weight, 11 with velocities, and almost one more forward run."""
    for steps, with_velocity, times in ((100, False, 8), (100, True, 11), (400, True, 11)):
        report = run(rh.Checkpoint(), steps, with_velocity)
        assert report.kept_bytes / WEIGHTS == pytest.approx(times * math.sqrt(steps), rel=0.15)
        assert 0.75 * steps < report.steps_again < steps


def test_snapshots_train_nothing_again():
    report = run(rh.Snapshots(), 30)
    assert report.steps_again == 0
    assert report.kept_bytes == 29 * 2 * 4 * WEIGHTS
    assert run(rh.Snapshots(), 30, with_velocity=False).kept_bytes == 29 * 4 * WEIGHTS
