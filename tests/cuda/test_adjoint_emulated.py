"""The CUDA kernels that undo a step with its adjoint give the bits of the CPU's, over the same emulation as the others."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from adjoint_problems import (
    ADJOINT_CASES,
    ALSO_ASKEW,
    AdjointBucket,
    AdjointStep,
    adjoint_sample,
    as_moved,
    assert_same_trace,
    journey,
    vectors_of,
)
from core_problems import EACH_RULE, WIDTHS, Step, integers, normal_gradients, units
from device_matrix import Case, state_of, steps_of
from loss_problems import LOSS_CASES, REFUSED, walk_back

STRAIGHT = frozenset()


def on(*ops, askew=STRAIGHT):
    return lambda *problem: AdjointBucket(*problem, *ops, askew=askew)


@WIDTHS
@pytest.mark.parametrize("askew", [STRAIGHT, ALSO_ASKEW], ids=["aligned", "askew"])
@pytest.mark.parametrize("case", ADJOINT_CASES)
def test_steps_back_have_the_same_bits(state_bits, askew, case, emulated):
    problem, count = ADJOINT_CASES[case], 1 if case == "many tensors" else 5
    expected = journey(problem, state_bits, on(), count)
    assert_same_trace(journey(problem, state_bits, on(emulated, askew=askew), count), expected)


@WIDTHS
@pytest.mark.parametrize("what", [*sorted(ALSO_ASKEW), "products"])
def test_one_array_askew(state_bits, what, emulated):
    """Emulation stops at a misaligned vector."""
    case = Case((1024, 512), ("float32", "bfloat16"), elements=(0,))

    class Bucket(AdjointBucket):
        def undo_weights_adjoint(self, step, record, adjoint):
            if what == "products":
                adjoint.products = [None if p is None else torch.cat([p[:1], p])[1:] for p in adjoint.products]
            super().undo_weights_adjoint(step, record, adjoint)

    mine = journey(case, state_bits, lambda *p: Bucket(*p, emulated, askew=frozenset({what}) & ALSO_ASKEW), 3)
    assert_same_trace(mine, journey(case, state_bits, on(), 3))


@WIDTHS
def test_more_blocks_than_lanes_of_a_sum(state_bits, emulated):
    case = Case((512 * 515 + 13, 5), ("float32", "bfloat16"))
    assert_same_trace(journey(case, state_bits, on(emulated), 1), journey(case, state_bits, on(), 1))


@WIDTHS
@pytest.mark.parametrize("place", [3, 511, 512, 1099])
def test_a_refused_block_is_left_out(state_bits, place, emulated):
    rng = np.random.default_rng(8)
    velocity, weight = units(state_bits)
    case = Case((1100, 70), ("float32", "float32"))
    x = [integers(rng, weight, size, state_bits) for size in case.sizes]
    states = [[integers(rng, velocity, size, state_bits) for size in case.sizes]]
    vectors = vectors_of(case, "float32", rng)
    shared = [(1.0, 0.01, 0.01)] * 2, 2.0**-10
    right = Step(normal_gradients(rng, case.sizes, case.dtypes, [True] * 2), *shared)
    wrong = Step([g.clone() for g in right.gradients], *shared)
    wrong.gradients[0][place] = 1e30
    adjoint = AdjointStep([torch.from_numpy(rng.standard_normal(size)).float() for size in case.sizes], [0.5, 0.25])
    traces = []
    for make in (on(), on(emulated)):
        bucket = make(x, states, list(case.dtypes), state_bits, "float32", vectors)
        record = bucket.step(right)
        bucket.undo_weights_adjoint(right, record, adjoint)
        bucket.undo_states_adjoint(wrong, record, adjoint)
        assert bucket.flags == [oracle.FOREIGN_GRADIENT | oracle.BAD_INCREMENT, 0]
        assert bucket.skipped.tolist() == [i == place // 512 for i in range(4)]
        traces.append([[*bucket.tensors(), bucket.skipped, *bucket.adjoint()]])
    assert_same_trace(traces[1], traces[0])


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("askew", [STRAIGHT, ALSO_ASKEW], ids=["aligned", "askew"])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_integers_that_have_moved_give_a_loss_the_same_bits(state_bits, rule, askew, case, emulated):
    mine = walk_back(LOSS_CASES[case], state_bits, rule, True, ops=emulated, askew=askew)
    assert_same_trace(mine, walk_back(LOSS_CASES[case], state_bits, rule, False))


@WIDTHS
@EACH_RULE
def test_a_block_that_was_refused_is_left_out_for_every_loss(state_bits, rule, emulated):
    mine = walk_back(REFUSED, state_bits, rule, True, refused=True, ops=emulated)
    assert_same_trace(mine, walk_back(REFUSED, state_bits, rule, False, refused=True))


def test_two_launches_or_one(emulated):
    """One for all tensors that have elements, and one more where sums are wanted."""

    def launched(case: Case, by_lr: bool, wanted) -> list[int]:
        rng = np.random.default_rng(0)
        x, states = state_of(case, 32, rng)
        (step,) = steps_of(case, 32, 1, rng)
        bucket = on(emulated)(x, states, list(case.dtypes), 32, "float32", vectors_of(case, "float32", rng))
        record = bucket.step(step)
        adjoint = AdjointStep([None] * len(case.sizes), [1.0] * len(case.sizes), by_lr, wanted)
        counts = [emulated.launches()]
        bucket.undo_weights_adjoint(step, record, adjoint)
        counts.append(emulated.launches())
        bucket.undo_states_adjoint(step, record, adjoint)
        counts.append(emulated.launches())
        return [after - before for before, after in pairwise(counts)]

    small, mixed = Case((3, 700, 5), ("float32",) * 3), Case((3, 700, 0), ("float32", "bfloat16", "float16"))
    assert launched(small, False, (False, False, False)) == [1, 1]
    assert launched(small, True, (False, True, True)) == [2, 2]
    assert launched(mixed, True, (False, False, False)) == [2, 1]
    assert launched(Case((0, 0), ("float32",) * 2), True, (True, True, True)) == [0, 0]


def test_nothing_is_launched_where_integers_have_moved_and_vectors_stay(emulated):
    """The second half of SGD without decay, sums and directions of its own."""
    case = Case((3, 700, 5), ("float32",) * 3, decay=0.0)
    rng = np.random.default_rng(0)
    x, states = state_of(case, 32, rng)
    (step,) = steps_of(case, 32, 1, rng)
    bucket = on(emulated)(x, states, list(case.dtypes), 32, "float32", vectors_of(case, "float32", rng))
    adjoint = AdjointStep([None] * 3, [1.0] * 3, False, (False,) * 3, (False,) * 3)
    arguments = bucket.states_adjoint_arguments(step, bucket.step(step), adjoint)
    emulated.undo_states_adjoint(*arguments)
    before, launches = [t.clone() for t in [*bucket.tensors(), *bucket.adjoint()]], emulated.launches()
    emulated.undo_states_adjoint(*as_moved(emulated.undo_states_adjoint, arguments))
    assert emulated.launches() == launches
    assert not bucket.outcome.any()
    assert_same_trace([[*bucket.tensors(), *bucket.adjoint()]], [before])


def test_errors_of_cuda_are_raised_and_nothing_moves(emulated):
    arguments = adjoint_sample(64)["undo_weights_adjoint"]
    state = [arguments[2], *arguments[3], *arguments[1]]
    before = [t.clone() for t in state]
    emulated.use_device(7)
    try:
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            emulated.undo_weights_adjoint(*arguments)
    finally:
        emulated.use_device(0)
    for t, expected in zip(state, before, strict=True):
        assert torch.equal(t, expected)
