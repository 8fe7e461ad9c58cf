"""The CUDA kernels' own source, over their own layout of threads and blocks, gives the bits of the CPU's ops."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from core_journeys import random_right_and_wrong, random_state, there_and_back
from core_problems import (
    ASKEW,
    EACH_RULE,
    WIDTHS,
    Bucket,
    Step,
    each_rule,
    normal_gradients,
    numbers_of,
    random_integers,
    same_bits,
    sample,
    zeros,
)
from device_matrix import CASES, Case, assert_same, state_of, steps_of, walk
from ticket_journey import assert_stands_still, journey

STRAIGHT = frozenset()


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("askew", [STRAIGHT, ASKEW], ids=["aligned", "askew"])
@pytest.mark.parametrize("case", CASES)
def test_steps_there_and_back_have_the_same_bits(state_bits, rule, askew, case, emulated):
    rng = np.random.default_rng(3)
    x, states = state_of(CASES[case], state_bits, rng, rule)
    count = 1 if case == "many tensors" else 6
    steps = steps_of(CASES[case], state_bits, count, rng, rule)
    given = x, states, list(CASES[case].dtypes), state_bits
    walk(Bucket(*given, rule=rule), [Bucket(*given, emulated, askew=askew, rule=rule)], steps)


@each_rule("seed", sgd=zip(range(6), strict=True), adam=zip(range(3), strict=True))
def test_whatever_the_gradients(seed, rule, emulated):
    """Garbage, overflows, foreign gradients, refused blocks and their redo."""
    refused = 0
    for problem in range(6):
        rng = np.random.default_rng([seed, problem])
        x, states, dtypes, state_bits = random_state(rng, rule)
        given = x, states, dtypes, state_bits
        buckets = [Bucket(*given, rule=rule), Bucket(*given, emulated, askew=STRAIGHT, rule=rule)]
        for _ in range(3):
            steps = random_right_and_wrong(rng, [len(part) for part in x], dtypes, state_bits, rule)
            (expected, skips), (mine, others) = [there_and_back(bucket, *steps) for bucket in buckets]
            assert len(mine) == len(expected)
            for i, (one, other) in enumerate(zip(mine, expected, strict=True)):
                assert same_bits(one, other), f"entry {i} of the trace"
            assert others == skips
            refused += skips
    assert refused, "no block was ever refused: the problems are too tame"


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("what", [*sorted(ASKEW), "gradients", "elements"])
def test_one_array_askew(state_bits, rule, what, emulated):
    """Vectors are used only where every array stands on them; emulation stops at a misaligned one."""
    rng = np.random.default_rng(6)
    case = Case((1024, 512), ("float32", "bfloat16"), elements=(0, 1))
    x, states = state_of(case, state_bits, rng, rule)
    steps = steps_of(case, state_bits, 4, rng, rule)

    def moved(t):
        return None if t is None else torch.cat([t[:1], t])[1:]

    for step in steps:
        if what == "gradients":
            step.gradients = [moved(g) for g in step.gradients]
        if what == "elements":
            step.elements = [[moved(e) for e in own] for own in step.elements]
            assert step.elements[0][rule.decay].data_ptr() % 16
    given = x, states, list(case.dtypes), state_bits
    walk(Bucket(*given, rule=rule), [Bucket(*given, emulated, askew=frozenset({what}) & ASKEW, rule=rule)], steps)


@WIDTHS
@each_rule("place", sgd=zip([0, 3, 511, 512, 700], strict=True), adam=[(511,), (700,)])
def test_one_bad_gradient_refuses_its_block_alone(state_bits, rule, place, emulated):
    rng = np.random.default_rng(8)
    x, states = random_integers(rng, [1100], state_bits, rule)
    shared = [numbers_of(rule, 1.0, 0.0, 0.01)], 2.0**-10
    right = Step(normal_gradients(rng, [1100], ["float32"], [True]), *shared)
    wrong = Step([right.gradients[0].clone()], *shared)
    wrong.gradients[0][place] = 1e30
    buckets = [Bucket(x, states, ["float32"], state_bits, *ops, askew=STRAIGHT, rule=rule) for ops in ((), (emulated,))]
    records = [bucket.step(right) for bucket in buckets]
    for bucket, record in zip(buckets, records, strict=True):
        bucket.undo(wrong, record)
        assert bucket.flags == [oracle.FOREIGN_GRADIENT | oracle.BAD_INCREMENT]
        assert bucket.skipped.tolist() == [i == place // 512 for i in range(3)]
    assert_same(buckets[1], buckets[0])
    for bucket, record in zip(buckets, records, strict=True):
        bucket.step(wrong, bucket.skipped, record)
    assert_same(buckets[1], buckets[0], records[1], records[0])


@WIDTHS
@each_rule("bad", sgd=[(float("nan"),), (1e30,)], adam=[(1e30,)])
def test_steps_that_nobody_waits_for(state_bits, rule, bad, emulated):
    trace = journey("cpu", state_bits, bad, emulated, rule)
    assert_stands_still(trace)
    if bad == 1e30:  # what integers become of NaN is each device's own
        for mine, expected in zip(trace, journey("cpu", state_bits, bad, rule=rule), strict=True):
            assert same_bits(mine, expected)


@WIDTHS
@EACH_RULE
def test_without_hash_the_outcome_has_none(state_bits, rule, emulated):
    for name, (*arguments, outcome) in sample(state_bits, rule).items():
        for hashes in (True, False):
            getattr(emulated, name)(*arguments[:-1], hashes, outcome)
            assert (outcome[0] != 0) == hashes


def test_a_rule_without_kernels_is_refused_by_name(emulated):
    with pytest.raises(RuntimeError, match="rule: there are no kernels for 'sgdx'"):
        emulated.step("sgdx", *sample(64)["step"][1:])


def test_one_launch_moves_a_bucket(emulated):
    """Whatever its dtypes; one more per 200 tensors or so; none for tensors without elements."""

    def launched(sizes, dtypes) -> int:
        v, x = zip(*(zeros(oracle.SGD, 32, size) for size in sizes), strict=True)
        bucket = Bucket(x, [v], dtypes, 32, emulated)
        step = Step([torch.zeros_like(w) for w in bucket.weights], [(1.0, 0.0, 0.0)] * len(sizes), 0.5)
        before = emulated.launches()
        bucket.step(step)
        return emulated.launches() - before

    assert launched([3, 700, 5], ["float32"] * 3) == 1
    assert launched([2] * 200, ["float32"] * 200) == 1
    assert launched([2] * 400, ["float32"] * 400) == 2
    assert launched([3, 700, 5], ["float32", "bfloat16", "float64"]) == 1
    assert launched([0, 0], ["float32"] * 2) == 0


@pytest.fixture
def on_device(emulated):
    """Tells the emulated ops on which of the two emulated GPUs the state is."""
    yield emulated.use_device
    emulated.use_device(0)


def test_kernels_run_on_the_device_of_the_state_and_leave_the_current_one(emulated, on_device):
    arguments = sample(64)["step"]
    assert emulated.devices()[0] == 0
    for device in (1, 0):
        on_device(device)
        emulated.step(*arguments)
        assert list(emulated.devices()) == [0, device]


def test_errors_of_cuda_are_raised_and_nothing_moves(emulated, on_device):
    arguments = sample(64)["step"]
    before = [t.clone() for t in (arguments[3], *arguments[4], *arguments[1])]
    on_device(7)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        emulated.step(*arguments)
    assert emulated.devices()[0] == 0
    for t, expected in zip((arguments[3], *arguments[4], *arguments[1]), before, strict=True):
        assert torch.equal(t, expected)
