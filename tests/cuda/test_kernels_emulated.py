"""The CUDA kernels' own source, over their own layout of threads and blocks, gives the bits of the CPU's ops."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from core_journeys import random_right_and_wrong, random_state, there_and_back
from core_problems import ASKEW, WIDTHS, Bucket, Step, integers, normal_gradients, same_bits, sample, units
from device_matrix import CASES, Case, assert_same, state_of, steps_of, walk
from ticket_journey import assert_stands_still, journey

STRAIGHT = frozenset()


@WIDTHS
@pytest.mark.parametrize("askew", [STRAIGHT, ASKEW], ids=["aligned", "askew"])
@pytest.mark.parametrize("case", CASES)
def test_steps_there_and_back_have_the_same_bits(state_bits, askew, case, emulated):
    rng = np.random.default_rng(3)
    x, v = state_of(CASES[case], state_bits, rng)
    count = 1 if case == "many tensors" else 6
    steps = steps_of(CASES[case], state_bits, count, rng)
    dtypes = list(CASES[case].dtypes)
    walk(Bucket(x, v, dtypes, state_bits), [Bucket(x, v, dtypes, state_bits, emulated, askew=askew)], steps)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_gradients(seed, emulated):
    """Garbage, overflows, foreign gradients, refused blocks and their redo."""
    refused = 0
    for problem in range(6):
        rng = np.random.default_rng([seed, problem])
        x, v, dtypes, state_bits = random_state(rng)
        buckets = [Bucket(x, v, dtypes, state_bits), Bucket(x, v, dtypes, state_bits, emulated, askew=STRAIGHT)]
        for _ in range(3):
            steps = random_right_and_wrong(rng, [len(part) for part in x], dtypes, state_bits)
            (expected, skips), (mine, others) = [there_and_back(bucket, *steps) for bucket in buckets]
            assert len(mine) == len(expected)
            for i, (one, other) in enumerate(zip(mine, expected, strict=True)):
                assert same_bits(one, other), f"entry {i} of the trace"
            assert others == skips
            refused += skips
    assert refused, "no block was ever refused: the problems are too tame"


@WIDTHS
@pytest.mark.parametrize("what", [*sorted(ASKEW), "gradients", "elements"])
def test_one_array_askew(state_bits, what, emulated):
    """Vectors are used only where every array stands on them; emulation stops at a misaligned one."""
    rng = np.random.default_rng(6)
    case = Case((1024, 512), ("float32", "bfloat16"), elements=(0, 1))
    x, v = state_of(case, state_bits, rng)
    steps = steps_of(case, state_bits, 4, rng)

    def moved(t):
        return None if t is None else torch.cat([t[:1], t])[1:]

    for step in steps:
        if what == "gradients":
            step.gradients = [moved(g) for g in step.gradients]
        if what == "elements":
            step.elements = [[moved(e) for e in own] for own in step.elements]
            assert step.elements[0][2].data_ptr() % 16
    bucket = Bucket(x, v, list(case.dtypes), state_bits, emulated, askew=frozenset({what}) & ASKEW)
    walk(Bucket(x, v, list(case.dtypes), state_bits), [bucket], steps)


@WIDTHS
@pytest.mark.parametrize("place", [0, 3, 511, 512, 700])
def test_one_bad_gradient_refuses_its_block_alone(state_bits, place, emulated):
    rng = np.random.default_rng(8)
    velocity, weight = units(state_bits)
    x, v = [integers(rng, weight, 1100, state_bits)], [integers(rng, velocity, 1100, state_bits)]
    shared = [(1.0, 0.0, 0.01)], 2.0**-10
    right = Step(normal_gradients(rng, [1100], ["float32"], [True]), *shared)
    wrong = Step([right.gradients[0].clone()], *shared)
    wrong.gradients[0][place] = 1e30
    buckets = [Bucket(x, v, ["float32"], state_bits, *ops, askew=STRAIGHT) for ops in ((), (emulated,))]
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
@pytest.mark.parametrize("bad", [float("nan"), 1e30])
def test_steps_that_nobody_waits_for(state_bits, bad, emulated):
    trace = journey("cpu", state_bits, bad, emulated)
    assert_stands_still(trace)
    if bad == 1e30:  # what integers become of NaN is each device's own
        for mine, expected in zip(trace, journey("cpu", state_bits, bad), strict=True):
            assert same_bits(mine, expected)


@WIDTHS
def test_without_hash_the_outcome_has_none(state_bits, emulated):
    for name, (*arguments, outcome) in sample(state_bits).items():
        for hashes in (True, False):
            getattr(emulated, name)(*arguments[:-1], hashes, outcome)
            assert (outcome[0] != 0) == hashes


def test_a_rule_without_kernels_is_refused_by_name(emulated):
    with pytest.raises(RuntimeError, match="rule: there are no kernels for 'sgdx'"):
        emulated.step("sgdx", *sample(64)["step"][1:])


def test_one_launch_moves_a_bucket(emulated):
    """Whatever its dtypes; one more per 200 tensors or so; none for tensors without elements."""

    def launched(sizes, dtypes) -> int:
        state = [[torch.zeros(n, dtype=torch.int32) for n in sizes] for _ in range(2)]
        bucket = Bucket(*state, dtypes, 32, emulated)
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
