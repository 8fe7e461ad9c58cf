"""The CUDA kernels' own source, over their own layout of threads and blocks, gives the bits of the CPU's ops."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from core_journeys import random_right_and_wrong, random_state, there_and_back
from core_problems import ASKEW, FRACTION_BITS, WIDTHS, Bucket, Step, normal_gradients, random_integers, sample
from device_matrix import CASES, FAST, Case, assert_same, state_of, steps_of, walk

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
    expected = Bucket(x, v, dtypes, state_bits)
    walk(expected, [Bucket(x, v, dtypes, state_bits, emulated, askew=askew)], steps)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_gradients(seed, emulated):
    """Garbage, overflows, foreign gradients, skipped blocks and their redo."""
    skipped = 0
    for problem in range(6):
        rng = np.random.default_rng([seed, problem])
        x, v, dtypes, state_bits = random_state(rng)
        buckets = [Bucket(x, v, dtypes, state_bits), Bucket(x, v, dtypes, state_bits, emulated, askew=STRAIGHT)]
        for _ in range(3):
            steps = random_right_and_wrong(rng, [len(part) for part in x], dtypes, state_bits)
            (expected, count), (mine, _) = (there_and_back(bucket, *steps) for bucket in buckets)
            for i, (one, other) in enumerate(zip(mine, expected, strict=True)):
                assert torch.equal(one, other), f"entry {i} of the trace"
            skipped += count
    assert skipped, "no block was ever skipped: the problems are too tame"


@WIDTHS
@pytest.mark.parametrize("what", [*sorted(ASKEW), "gradients", "elements"])
def test_one_array_askew(state_bits, what, emulated):
    """Vectors are used only where every array stands on them; emulation stops at a misaligned one."""
    rng = np.random.default_rng(6)
    case = Case((1024, 512), ("float32", "bfloat16"), elements=(0, 1))
    x, v = state_of(case, state_bits, rng)
    steps = steps_of(case, state_bits, 2, rng)

    def askew(tensor):
        return None if tensor is None else torch.cat([tensor[:1], tensor])[1:]

    for step in steps:
        if what == "gradients":
            step.gradients = [askew(g) for g in step.gradients]
            assert step.gradients[0].data_ptr() % 16
        elif what == "elements":
            step.elements = [[askew(e) for e in own] for own in step.elements]
    bucket = Bucket(x, v, list(case.dtypes), state_bits, emulated, askew=frozenset({what}) & ASKEW)
    walk(Bucket(x, v, list(case.dtypes), state_bits), [bucket], steps)


@WIDTHS
def test_planes_that_begin_anywhere(state_bits, emulated):
    """Planes of whole blocks behind those of 1 to 4 small tensors: at every byte of a word."""
    for ahead in range(1, 5):
        rng = np.random.default_rng(7)
        case = Case((*[3] * ahead, 1024), ("float32",) * (ahead + 1), momentum=FAST)
        x, v = state_of(case, state_bits, rng)
        buckets = [Bucket(x, v, list(case.dtypes), state_bits, *ops, askew=STRAIGHT) for ops in ((), (emulated,))]
        walk(buckets[0], buckets[1:], steps_of(case, state_bits, 3, rng))


@WIDTHS
@pytest.mark.parametrize("place", [0, 3, 511, 512, 700])
def test_one_foreign_gradient_skips_its_block_alone(state_bits, place, emulated):
    rng = np.random.default_rng(8)
    x, v = random_integers(rng, [1100], state_bits)
    numbers = [(0.5, 0.0, 0.01)]
    right = Step(normal_gradients(rng, [1100], ["float32"], [True]), numbers, 2.0**-16)
    wrong = Step([right.gradients[0].clone()], numbers, 2.0**-16)
    # Inside the limits of increments, but 2^16 times as large as V.
    wrong.gradients[0][place] = 2.0 ** (oracle.LAYOUTS[state_bits].change_bits - 1 - FRACTION_BITS[state_bits][0])
    buckets = [Bucket(x, v, ["float32"], state_bits, *ops, askew=STRAIGHT) for ops in ((), (emulated,))]
    records = [bucket.step(right) for bucket in buckets]
    for bucket, record in zip(buckets, records, strict=True):
        bucket.undo(wrong, record)
        assert bucket.flags == [oracle.FOREIGN_GRADIENT]
        assert bucket.skipped.tolist() == [i == place // oracle.BLOCK for i in range(3)]
    assert_same(buckets[1], buckets[0])
    for bucket, record in zip(buckets, records, strict=True):
        bucket.step(wrong, bucket.skipped, record)
    assert_same(buckets[1], buckets[0], records[1], records[0])


@WIDTHS
def test_without_hash_the_outcome_holds_flags_and_used_words_only(state_bits, emulated):
    arguments = list(sample(state_bits)["step"])
    arguments[-2] = False
    emulated.step(*arguments)
    assert arguments[-1][0] == 0
    assert arguments[-1][1::3].tolist() == [0] * 3
    assert arguments[-1][2::3].bool().tolist() == [True, False, True]


def test_one_launch_moves_a_bucket(emulated):
    """One for each dtype, one more per 300 tensors or so; none for tensors without elements."""

    def launched(sizes, dtypes) -> int:
        bucket = Bucket(
            [torch.zeros(n, dtype=torch.int32) for n in sizes],
            [torch.zeros(n, dtype=torch.int32) for n in sizes],
            dtypes,
            32,
            emulated,
        )
        gradients = [w.clone() for w in bucket.weights]
        before = emulated.launches()
        bucket.step(Step(gradients, [(1.0, 0.0, 0.0)] * len(sizes), 0.5))
        return emulated.launches() - before

    assert launched([3, 700, 5], ["float32"] * 3) == 1
    assert launched([2] * 200, ["float32"] * 200) == 1
    assert launched([2] * 400, ["float32"] * 400) == 2
    assert launched([3, 700, 5], ["float32", "bfloat16", "float32"]) == 2
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
    state = arguments[3], *arguments[4], *arguments[1]
    before = [t.clone() for t in state]
    on_device(7)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        emulated.step(*arguments)
    assert emulated.devices()[0] == 0
    for t, expected in zip(state, before, strict=True):
        assert torch.equal(t, expected)
