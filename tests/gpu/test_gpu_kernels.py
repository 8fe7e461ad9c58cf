"""The CUDA ops on a GPU: the bits of the CPU's ops, on any stream and device, without waiting, at any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from core_journeys import random_right_and_wrong, random_state, there_and_back
from core_problems import (
    ASKEW,
    EACH_RULE,
    NONE_SKIPPED,
    WIDTHS,
    Bucket,
    Step,
    each_rule,
    normal_gradients,
    numbers_of,
    random_integers,
)
from device_matrix import CASES, FAST, Case, assert_same, state_of, steps_of, walk
from gpu_machine import DEVICE, GPU, Captured, no_synchronisation  # noqa: F401

from reversible_hypergrad._ops import ops

pytestmark = GPU

STRAIGHT = frozenset()
ORDINARY = Case((70_001, 513, 9), ("float32", "bfloat16", "float16"), momentum=FAST, elements=(1,))


def buckets_of(case: Case, state_bits: int, devices: list[str], seed: int = 3, rule=oracle.SGD, **options) -> list[Bucket]:
    x, states = state_of(case, state_bits, np.random.default_rng(seed), rule)
    return [Bucket(x, states, list(case.dtypes), state_bits, device=device, rule=rule, **options) for device in devices]


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("askew", [STRAIGHT, ASKEW], ids=["aligned", "askew"])
@pytest.mark.parametrize("case", [*CASES, "ordinary"])
def test_steps_there_and_back_have_the_same_bits(state_bits, askew, case, rule):
    problem = CASES.get(case, ORDINARY)
    expected, mine = buckets_of(problem, state_bits, ["cpu", DEVICE], askew=askew, rule=rule)
    walk(expected, [mine], steps_of(problem, state_bits, 7, np.random.default_rng(4), rule))


@EACH_RULE
@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_gradients(seed, rule):
    for problem in range(8):
        rng = np.random.default_rng([seed, problem])
        x, states, dtypes, state_bits = random_state(rng, rule)
        buckets = [Bucket(x, states, dtypes, state_bits, device=device, askew=STRAIGHT, rule=rule) for device in ("cpu", DEVICE)]
        for _ in range(4):
            steps = random_right_and_wrong(rng, [len(part) for part in x], dtypes, state_bits, rule)
            (expected, _), (mine, _) = (there_and_back(bucket, *steps) for bucket in buckets)
            for i, (one, other) in enumerate(zip(mine, expected, strict=True)):
                assert torch.equal(one, other), f"entry {i} of the trace"


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize(("there", "back"), [("cpu", DEVICE), (DEVICE, "cpu")], ids=["CPU to GPU", "GPU to CPU"])
def test_recorded_on_one_device_and_undone_on_the_other(state_bits, there, back, rule):
    first, other = buckets_of(ORDINARY, state_bits, [there, back], rule=rule)
    start = first.snapshot()
    steps = steps_of(ORDINARY, state_bits, 20, np.random.default_rng(4), rule)
    records = [first.step(step) for step in steps]
    for mine, source in zip(other.tensors(), first.tensors(), strict=True):
        mine.copy_(source)
    for step, record in zip(reversed(steps), reversed(records), strict=True):
        other.undo(step, replace(record, planes=record.planes.to(back)))
        assert not any(other.flags)
    other.assert_equals([t.to(back) for t in start])


@WIDTHS
def test_on_a_stream_of_its_own(state_bits):
    """Work follows the stream that is current, behind what was queued there and before what comes."""
    expected, mine = buckets_of(ORDINARY, state_bits, ["cpu", DEVICE])
    steps = steps_of(ORDINARY, state_bits, 6, np.random.default_rng(4))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for step in steps:
            mine.step(step)
        copies = mine.snapshot()
    stream.synchronize()
    for step in steps:
        expected.step(step)
    for copy, tensor in zip(copies, expected.tensors(), strict=True):
        assert torch.equal(copy.cpu().view(torch.uint8), tensor.contiguous().view(torch.uint8))


@WIDTHS
@EACH_RULE
def test_nothing_waits_for_the_gpu(state_bits, rule, no_synchronisation):  # noqa: F811
    (bucket,) = buckets_of(ORDINARY, state_bits, [DEVICE], rule=rule)
    (step,) = steps_of(ORDINARY, state_bits, 1, np.random.default_rng(4), rule)
    step.gradients = [g.to(DEVICE) for g in step.gradients]
    step.elements = [[None if e is None else e.to(DEVICE) for e in own] for own in step.elements]
    record, skipped = bucket.record(step), NONE_SKIPPED.to(DEVICE)
    with no_synchronisation():
        bucket.step(step, skipped, record)
        bucket.undo(step, record)


@WIDTHS
@EACH_RULE
def test_captured_in_a_graph(state_bits, rule):
    """What shifts nothing, a step or its undoing, replays as often as one likes: the graph holds its numbers and addresses."""
    case = Case((1030, 65), ("float32", "float32"))
    expected, mine = buckets_of(case, state_bits, ["cpu", DEVICE], rule=rule)
    rng = np.random.default_rng(5)

    def next_step() -> Step:
        return Step(normal_gradients(rng, case.sizes, case.dtypes, [True] * 2), [numbers_of(rule, 0.5, 0.02, 0.01)] * 2, 1.0)

    step = next_step()
    static = replace(step, gradients=[g.to(DEVICE) for g in step.gradients])
    record, skipped = mine.record(static), NONE_SKIPPED.to(DEVICE)
    # Once outside: a kernel is loaded when it first runs, which a capture does not allow.
    mine.step(static, skipped, record)
    mine.undo(static, record)
    expected.undo(step, expected.step(step))
    forward = Captured(lambda: mine.step(static, skipped, record))
    back = Captured(lambda: mine.undo(static, record))
    assert_same(mine, expected)  # a capture executes nothing
    steps = [next_step() for _ in range(5)]
    for step in steps:
        give(static, step)
        forward()
        expected.step(step)
        assert_same(mine, expected)
    for step in reversed(steps):
        give(static, step)
        back()
        expected.undo(step, expected.record(step))
        assert_same(mine, expected)


def give(static: Step, step: Step) -> None:
    for target, gradient in zip(static.gradients, step.gradients, strict=True):
        target.copy_(gradient)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@WIDTHS
def test_another_gpu_than_the_current_one(state_bits):
    expected, mine = buckets_of(ORDINARY, state_bits, ["cpu", "cuda:1"])
    with torch.cuda.device(0):
        walk(expected, [mine], steps_of(ORDINARY, state_bits, 3, np.random.default_rng(4)))
        assert torch.cuda.current_device() == 0


def test_tensors_of_two_devices_are_refused_by_name():
    mine, other = buckets_of(Case((8, 8), ("float32", "float32")), 64, [DEVICE, "cpu"])
    mine.weights[1] = other.weights[1]
    before = mine.x.clone()
    with pytest.raises(RuntimeError, match=r"weights\[1\]: expected a tensor on cuda:0.*got one on cpu"):
        mine.step(Step([torch.zeros(8)] * 2, [(1.0, 0.0, 1.0)] * 2, 0.9))
    assert torch.equal(mine.x, before)


@each_rule("needs", sgd=[(34,)], adam=[(60,)])
def test_more_elements_than_32_bits_count(rule, needs):
    """A tensor of 2^31 + 1613 weights, all blocks alike, moves as a small one does; 27 GB of GPU memory, 45 with a wide state."""
    if torch.cuda.mem_get_info()[0] < needs << 30:
        pytest.skip(f"needs {needs} GB of free GPU memory")
    size, rng = 2**31 + 3 * 512 + 77, np.random.default_rng(6)
    (x,), states = random_integers(rng, [512], 32, rule)
    gradient = torch.from_numpy(rng.standard_normal(512)).half()
    small = Bucket([x.repeat(2)[:589]], [[z.repeat(2)[:589]] for (z,) in states], ["float16"], 32, rule=rule)
    step = Step([gradient.repeat(2)[:589]], [numbers_of(rule, 0.5, 0.02, 0.01)], 0.1)
    record = small.step(step)

    def large(part: torch.Tensor) -> torch.Tensor:
        return part.to(DEVICE).repeat(size // 512 + 1)[:size]

    slots = [torch.zeros(oracle.state_size(size), dtype=z.dtype, device=DEVICE) for z in (*small.states, small.x)]
    for slot, part in zip(slots, (*(z for (z,) in states), x), strict=True):
        slot[:size] = large(part)
    weight = torch.zeros(size, dtype=torch.float16, device=DEVICE)
    outcome = torch.zeros_like(small.outcome, device=DEVICE)
    bits, plane = int(record.shifts[0, 1::2].sum()), -(-size // 8)
    planes = torch.empty(bits * plane, dtype=torch.uint8, device=DEVICE)
    given = record.numbers, record.shifts, [], planes, NONE_SKIPPED.to(DEVICE), True, outcome
    ops.step(rule.name, [weight], [large(gradient)], slots[-1], slots[:-1], *given)
    small_planes = record.planes.view(bits, -1)
    of_large = [(mine, expected, 512, 77) for mine, expected in zip(slots, (*small.states, small.x), strict=True)]
    of_large.append((weight, small.weights[0], 512, 77))
    of_large += [(planes[i * plane : (i + 1) * plane], small_planes[i], 64, 10) for i in range(bits)]
    for mine, expected, per_block, tail in of_large:
        whole = size // 512 * per_block
        assert bool((mine[:whole].view(-1, per_block) == expected[:per_block].to(DEVICE)).all())
        assert torch.equal(mine[whole : whole + tail].cpu(), expected[per_block : per_block + tail])
    assert outcome[1] == 0
