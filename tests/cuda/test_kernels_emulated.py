"""The CUDA kernels' own source, over their own layout of threads and blocks, gives the bits of the CPU's ops."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from core_journeys import random_right_and_wrong, random_state, there_and_back
from core_problems import ASKEW, WIDTHS, Bucket, Step, coefficients, integers, normal_gradients, sample
from device_matrix import CASES, Case, assert_same, state_of, steps_of, walk

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
    spills = walk(expected, [Bucket(x, v, dtypes, state_bits, emulated, askew=askew)], steps)
    if CASES[case].momentum == "1/max":
        assert {8, 16} & set(spills)


@WIDTHS
def test_both_widths_of_spills_occur(state_bits, emulated):
    spills = set()
    for momentum in ("1/max", "changing", "0.9"):
        rng = np.random.default_rng(4)
        case = Case((70, 513), ("float32", "float16"), momentum=momentum)
        x, v = state_of(case, state_bits, rng)
        buckets = [Bucket(x, v, list(case.dtypes), state_bits, *ops) for ops in ((), (emulated,))]
        spills |= set(walk(buckets[0], buckets[1:], steps_of(case, state_bits, 10, rng)))
    assert spills == ({16} if state_bits == 64 else {8, 16})


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
            traces = [there_and_back(bucket, *steps) for bucket in buckets]
            for i, (mine, expected) in enumerate(zip(traces[1], traces[0], strict=True)):
                assert torch.equal(mine, expected), f"entry {i} of the trace"
            refused += int(traces[0][9].sum())
    assert refused, "no block was ever refused: the problems are too tame"


@WIDTHS
@pytest.mark.parametrize("what", [*sorted(ASKEW), "gradients", "rates"])
def test_one_array_askew(state_bits, what, emulated):
    """Vectors are used only where every array stands on them; emulation stops at a misaligned one."""
    rng = np.random.default_rng(6)
    case = Case((1024, 512), ("float32", "bfloat16"), rates=(0, 1))
    x, v = state_of(case, state_bits, rng)
    steps = steps_of(case, state_bits, 2, rng)
    for step in steps:
        for part in (step.gradients, step.rates):
            if part is (step.gradients if what == "gradients" else step.rates if what == "rates" else None):
                part[:] = [torch.cat([t[:1], t])[1:] for t in part]
                assert part[0].data_ptr() % 16
    bucket = Bucket(x, v, list(case.dtypes), state_bits, emulated, askew=frozenset({what}) & ASKEW)
    walk(Bucket(x, v, list(case.dtypes), state_bits), [bucket], steps)


@WIDTHS
def test_lanes_that_begin_anywhere(state_bits, emulated):
    """Accumulators and planes of a whole block behind 1 to 4 single lanes."""
    for ahead in range(1, 5):
        rng = np.random.default_rng(7)
        case = Case((*[3] * ahead, 1024), ("float32",) * (ahead + 1), momentum="1/max")
        x, v = state_of(case, state_bits, rng)
        buckets = [Bucket(x, v, list(case.dtypes), state_bits, *ops, askew=STRAIGHT) for ops in ((), (emulated,))]
        walk(buckets[0], buckets[1:], steps_of(case, state_bits, 3, rng))


@WIDTHS
@pytest.mark.parametrize("place", [0, 3, 511, 512, 700])
def test_one_bad_gradient_refuses_its_block_alone(state_bits, place, emulated):
    rng = np.random.default_rng(8)
    fmt = oracle.FORMATS[state_bits]
    x = [integers(rng, 2**fmt.weight_bits, 1100, state_bits)]
    v = [integers(rng, 2**fmt.velocity_bits, 1100, state_bits)]
    c = [coefficients(state_bits, 0.1, 0.0, 0.01)]
    right = Step(normal_gradients(rng, [1100], ["float32"], [True]), c, 1, 10)
    wrong = Step([right.gradients[0].clone()], c, 1, 10)
    wrong.gradients[0][place] = fmt.velocity_limit / 4 / abs(c[0][0])
    buckets = [Bucket(x, v, ["float32"], state_bits, *ops, askew=STRAIGHT) for ops in ((), (emulated,))]
    tapes = [bucket.step(right) for bucket in buckets]
    for bucket, tape in zip(buckets, tapes, strict=True):
        bucket.undo(wrong, *tape)
        assert bucket.flags == [oracle.FOREIGN_GRADIENT]
        assert bucket.skipped.tolist() == [i == place // 512 for i in range(3)]
    assert_same(buckets[1], buckets[0])
    for bucket, (spill_bits, planes) in zip(buckets, tapes, strict=True):
        bucket.step(wrong, bucket.skipped, planes, spill_bits)
    assert_same(buckets[1], buckets[0], tapes[1][1], tapes[0][1])


@WIDTHS
def test_without_hash_the_outcome_holds_flags_only(state_bits, emulated):
    arguments = list(sample(state_bits)["sgd_step"])
    arguments[-2] = False
    emulated.sgd_step(*arguments)
    assert arguments[-1].tolist() == [0] * 4


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
        bucket.step(Step(gradients, [(1.0, 0.0, 0.0)] * len(sizes), 1, 2))
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
    arguments = sample(64)["sgd_step"]
    assert emulated.devices()[0] == 0
    for device in (1, 0):
        on_device(device)
        emulated.sgd_step(*arguments)
        assert list(emulated.devices()) == [0, device]


def test_errors_of_cuda_are_raised_and_nothing_moves(emulated, on_device):
    arguments = sample(64)["sgd_step"]
    before = [t.clone() for t in arguments[3:6]]
    on_device(7)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        emulated.sgd_step(*arguments)
    assert emulated.devices()[0] == 0
    for t, expected in zip(arguments[3:6], before, strict=True):
        assert torch.equal(t, expected)
