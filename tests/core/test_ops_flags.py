"""Bad gradients and overflows are flagged and undone exactly; undone with a foreign gradient, a step is redone exactly."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle
import pytest
import torch
from core_journeys import random_right_and_wrong, random_state, there_and_back
from core_problems import (
    EACH_INSTRUCTION_SET,
    FLAG_DTYPES,
    FLAG_SIZES,
    INSTRUCTION_SETS,
    STATE_DTYPES,
    WIDTHS,
    Bucket,
    Step,
    assert_flagged_step_is_undone,
    flagged_problem,
    normal_gradients,
    same_bits,
)

from reversible_hypergrad import _core

BAD_GRADIENTS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e30, "-huge": -1e30, "max": 3.3e38}


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("places", [[(0, 0)], [(1, 513)], [(1, 699), (2, 7)], [(2, 1029)], [(0, i) for i in range(40)]])
@pytest.mark.parametrize(("n", "d"), [(9, 10), (1, 10)])
def test_bad_gradient_is_flagged_and_undone(state_bits, instruction_set, bad, places, n, d, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, n, d)
    for tensor, i in places:
        step.gradients[tensor][i] = BAD_GRADIENTS[bad]
    spoilt = {tensor for tensor, _ in places}
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_GRADIENT * (i in spoilt) for i in range(3)])


@WIDTHS
def test_bad_gradient_leaves_the_other_tensors_alone(state_bits):
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    other, same, _ = flagged_problem(state_bits, 9, 10)
    step.gradients[1][5] = math.nan
    bucket.step(step)
    other.step(same)
    for state, expected in ((bucket.x, other.x), (bucket.v, other.v)):
        for i in (0, 2):
            assert torch.equal(bucket.split(state)[i], other.split(expected)[i])


@WIDTHS
def test_gradient_of_float64_beyond_float32_is_bad_for_a_32_bit_state_only(state_bits):
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    step.gradients[0][3] = 1e300
    step.coefficients = [(c[0] * 1e-300 if i == 0 else c[0], 0.0, c[2]) for i, c in enumerate(step.coefficients)]
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_GRADIENT if state_bits == 32 else 0, 0, 0])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("tensor", range(3))
def test_velocity_overflow_is_flagged_and_undone(state_bits, instruction_set, sign, tensor, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 99, 100)
    limit = oracle.FORMATS[state_bits].velocity_limit
    bucket.split(bucket.v)[tensor][-1] = sign * (limit - 1)
    step.gradients[tensor][-1] = sign
    step.coefficients = [(limit / 2, 0.0, 0.0) if i == tensor else c for i, c in enumerate(step.coefficients)]
    step.gradients[tensor][:-1] = 0
    assert_flagged_step_is_undone(bucket, step, [oracle.VELOCITY_OVERFLOW * (i == tensor) for i in range(3)])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("beyond", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize("what", ["velocity", "weight"])
def test_overflow_begins_at_the_limit(state_bits, instruction_set, sign, beyond, what, use_instruction_set):
    """In range is [-limit, limit)."""
    use_instruction_set(instruction_set)
    fmt = oracle.FORMATS[state_bits]
    x, v = torch.zeros(20, dtype=STATE_DTYPES[state_bits]), torch.zeros(20, dtype=STATE_DTYPES[state_bits])
    gradient = torch.zeros(20)
    if what == "velocity":
        v[11] = fmt.velocity_limit - 2 if sign > 0 else -(fmt.velocity_limit - 1)
        c = (1.0, 0.0, 0.0)
    else:
        x[11] = fmt.weight_limit - 2 if sign > 0 else -(fmt.weight_limit - 1)
        c = (1.0, 0.0, -1.0)
    gradient[11] = sign * (1 + beyond)
    bucket = Bucket([x], [v], ["float32"], state_bits)
    flag = {"velocity": oracle.VELOCITY_OVERFLOW, "weight": oracle.WEIGHT_OVERFLOW}[what]
    assert_flagged_step_is_undone(bucket, Step([gradient], [c], 1, 1), [flag * beyond])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("how", ["sum", "product", "product beyond the integers", "infinite product"])
@pytest.mark.parametrize("tensor", range(3))
def test_weight_overflow_is_flagged_and_undone(state_bits, instruction_set, how, tensor, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 9, 10)
    fmt = oracle.FORMATS[state_bits]
    lr = {"sum": 1.0, "product": 2.0**14, "product beyond the integers": 1e25, "infinite product": 3e38}[how]
    if how == "sum":
        bucket.split(bucket.x)[tensor][17] = fmt.weight_limit - 1
        bucket.split(bucket.v)[tensor][17] = -(fmt.velocity_limit // 2)
    else:
        bucket.split(bucket.v)[tensor][17] = fmt.velocity_limit // 2
    step.coefficients = [(c[0], 0.0, lr) if i == tensor else c for i, c in enumerate(step.coefficients)]
    for part, visible in zip(bucket.split(bucket.x), bucket.weights, strict=True):
        visible.copy_((part.double() * 2.0**-fmt.weight_bits).float())
    start = bucket.snapshot()
    tape = bucket.step(step)
    assert bucket.flags == [oracle.WEIGHT_OVERFLOW * (i == tensor) for i in range(3)]
    bucket.undo(step, *tape)
    for mine, expected in zip(bucket.tensors()[:3], start[:3], strict=True):
        assert same_bits(mine, expected)


# Foreign gradients ---------------------------------------------------------------------------------------------------


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("decay", [0.0, 0.02], ids=["plain", "weight decay"])
@pytest.mark.parametrize("scale", ["same", "x30", "large", "zero", "nan", "mixed"])
@pytest.mark.parametrize(("n", "d"), [(1, 10), (9, 10), (1, 2), (999, 1000)], ids=lambda value: str(value))
def test_undo_with_a_wrong_gradient_is_redone(state_bits, instruction_set, decay, scale, n, d, use_instruction_set):
    """move back, undo_velocity with a wrong gradient, step with the same one: where we were, with every plane."""
    use_instruction_set(instruction_set)
    bucket, step, rng = flagged_problem(state_bits, n, d)
    step.coefficients = [(a, b if decay else 0.0, lr) for a, b, lr in step.coefficients]
    before = bucket.snapshot()
    spill_bits, planes = bucket.step(step)
    assert bucket.flags == [0, 0, 0]
    done, written = bucket.snapshot(), [plane.clone() for plane in planes]

    wrong = Step(normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3), step.coefficients, n, d)
    most = oracle.FORMATS[state_bits].velocity_limit / abs(step.coefficients[0][0])
    for gradient in wrong.gradients:
        if scale == "x30":
            gradient *= 30
        elif scale == "large":
            gradient *= most / 10
        elif scale == "zero":
            gradient.zero_()
        elif scale == "nan":
            gradient[len(gradient) // 2] = math.nan
        elif scale == "mixed":
            where = torch.from_numpy(rng.random(len(gradient)) < 0.002)
            gradient[where] = torch.tensor([math.inf, -1e30, most * 0.9, math.nan] * 600)[: int(where.sum())].to(gradient)
    bucket.move(wrong, back=True)
    moved = bucket.snapshot()
    bucket.undo_velocity(wrong, spill_bits, planes)
    assert any(not torch.equal(a, b) for a, b in zip(bucket.snapshot()[:3], before[:3], strict=True))
    assert torch.equal(bucket.x, moved[0])  # an undone velocity moves no weight
    bucket.step(wrong, bucket.skipped, planes, spill_bits)
    bucket.assert_equals(done)
    for plane, expected in zip(planes, written, strict=True):
        assert torch.equal(plane, expected)
    # With the right gradients the way back is still there.
    bucket.undo(step, spill_bits, planes)
    assert bucket.flags == [0, 0, 0]
    assert not bucket.skipped.any()
    bucket.assert_equals(before)
    bucket.assert_guards()


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("place", [(0, 39), (1, 0), (1, 512), (1, 699), (2, 600), (2, 1029)], ids=str)
def test_foreign_gradient_marks_its_block_and_leaves_it_untouched(state_bits, instruction_set, place, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 1, 10)
    before = bucket.snapshot()
    spill_bits, planes = bucket.step(step)
    assert any(spill_bits)
    tensor, i = place
    wrong = copy.deepcopy(step)
    # V - q expands by d/n = 10, out of the range.
    limit = oracle.FORMATS[state_bits].velocity_limit
    wrong.gradients[tensor][i] = limit / 4 / abs(step.coefficients[tensor][0])
    bucket.move(wrong, back=True)
    moved = bucket.snapshot()
    bucket.undo_velocity(wrong, spill_bits, planes)
    assert bucket.flags == [oracle.FOREIGN_GRADIENT * (k == tensor) for k in range(3)]
    blocks = [_core.block_count(size) for size in FLAG_SIZES]
    marked = sum(blocks[:tensor]) + i // oracle.BLOCK
    assert bucket.skipped.bool().tolist() == [k == marked for k in range(sum(blocks))]
    # Inside the block all as it was; outside, all as the right gradients leave it.
    begin, end = i // oracle.BLOCK * oracle.BLOCK, min(FLAG_SIZES[tensor], (i // oracle.BLOCK + 1) * oracle.BLOCK)
    expected = before[1].clone()
    bucket.split(expected)[tensor][begin:end] = bucket.split(moved[1])[tensor][begin:end]
    assert torch.equal(bucket.v, expected)
    first = sum(_core.lane_count(size) for size in FLAG_SIZES[:tensor])
    lanes = slice(first + _core.lane_count(begin), first + _core.lane_count(end))
    expected = before[2].clone()
    expected[lanes] = moved[2][lanes]
    assert torch.equal(bucket.s, expected)


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize(("n", "d"), [(9, 10), (8010, 8192), (1, 2)], ids=str)
def test_wrong_gradient_at_the_end_of_the_range_is_redone(state_bits, instruction_set, sign, n, d, use_instruction_set):
    """A wrong gradient that would expand V to a little beyond its limit is foreign, or the redo must still be exact."""
    use_instruction_set(instruction_set)
    v = torch.full([1], sign * (oracle.FORMATS[state_bits].velocity_limit - 1), dtype=STATE_DTYPES[state_bits])
    c = [(1.0, 0.0, 0.0)]
    right = Step([torch.zeros(1, dtype=torch.float64)], c, n, d)
    for q in [1, 2, 3, 5, 10, 30, 100, 400, 1000, 10**4, 10**5, 10**6]:
        bucket = Bucket([torch.zeros_like(v)], [v], ["float64"], state_bits)
        spill_bits, planes = bucket.step(right)
        done = bucket.snapshot()
        wrong = Step([torch.tensor([-sign * q], dtype=torch.float64)], c, n, d)
        bucket.undo(wrong, spill_bits, planes)
        flags, undone = bucket.flags, int(bucket.split(bucket.v)[0][0])
        bucket.step(wrong, bucket.skipped, planes, spill_bits)
        redone = int(bucket.split(bucket.v)[0][0]), int(bucket.s[0])
        expected = int(bucket.split(done[1])[0][0]), int(done[2][0])
        assert redone == expected, f"q = {-sign * q}: undone to {undone} with flags {flags}"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_gradients_a_step_is_undone_and_redone(seed, use_instruction_set):
    """Random formats, sizes, momenta, magnitudes and garbage: all instruction sets agree, right gradients lead back,
    wrong ones lead back and forth.
    """
    for problem in range(8):
        rng = np.random.default_rng([seed, problem])
        x, v, dtypes, state_bits = random_state(rng)
        sizes = [len(part) for part in x]
        buckets = {name: Bucket(x, v, dtypes, state_bits) for name in INSTRUCTION_SETS}
        for _ in range(4):
            right, wrong = random_right_and_wrong(rng, sizes, dtypes, state_bits)
            traces = []
            for name, bucket in buckets.items():
                use_instruction_set(name)
                traces.append(there_and_back(bucket, right, wrong))
            for name, trace in zip(INSTRUCTION_SETS, traces, strict=True):
                for mine, first in zip(trace, traces[0], strict=True):
                    assert torch.equal(mine, first), name
