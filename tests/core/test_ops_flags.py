"""Bad increments and overflows are flagged and undone exactly, and stop the steps behind them."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from core_problems import (
    EACH_INSTRUCTION_SET,
    FLAG_SIZES,
    FRACTION_BITS,
    STATE_DTYPES,
    WIDTHS,
    Bucket,
    Step,
    assert_flagged_step_is_undone,
    flagged_problem,
    one_gradient_of_20,
    one_weight_of_20,
)
from oracle_twin import assert_is_oracle, oracle_step, oracle_twin
from ticket_journey import assert_stands_still, journey

BAD_GRADIENTS = {"nan": math.nan, "-nan": -math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e30, "max": -3.3e38}


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("places", [[(0, 0)], [(1, 513)], [(1, 699), (2, 7)], [(2, 1029)], [(0, i) for i in range(40)]])
@pytest.mark.parametrize("momentum", [1.0, 0.1])
def test_bad_gradient_is_flagged_and_undone(state_bits, instruction_set, bad, places, momentum, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, momentum)
    for tensor, i in places:
        step.gradients[tensor][i] = BAD_GRADIENTS[bad]
    spoilt = {tensor for tensor, _ in places}
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_INCREMENT * (i in spoilt) for i in range(3)])


@WIDTHS
def test_bad_gradient_leaves_the_other_tensors_alone(state_bits):
    bucket, step, _ = flagged_problem(state_bits, 0.9)
    other, same, _ = flagged_problem(state_bits, 0.9)
    step.gradients[1][5] = math.nan
    bucket.step(step)
    other.step(same)
    for state, expected in ((bucket.x, other.x), (bucket.v, other.v)):
        for i in (0, 2):
            assert torch.equal(bucket.split(state)[i], other.split(expected)[i])


@WIDTHS
def test_gradient_of_float64_beyond_float32_is_bad_for_a_32_bit_state_only(state_bits):
    bucket, step, _ = flagged_problem(state_bits, 0.9)
    step.gradients[0][3] = 1e300
    step.numbers = [(share * 1e-300 if i == 0 else share, 0.0, lr) for i, (share, _, lr) in enumerate(step.numbers)]
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_INCREMENT if state_bits == 32 else 0, 0, 0])


# At the limits --------------------------------------------------------------------------------------------------------


AT_LIMITS = ["increment", "state", "change", "weight"]


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("beyond", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize("what", AT_LIMITS)
def test_flags_begin_at_the_limit(state_bits, instruction_set, sign, beyond, what, use_instruction_set):
    """In range is [-limit, limit)."""
    use_instruction_set(instruction_set)
    layout = oracle.LAYOUTS[state_bits]
    edge = {limit: limit - 1 + beyond if sign > 0 else -limit - beyond for limit in (layout.limit, layout.change_limit)}
    if state_bits == 32:  # float has 24 bits: the next ones inside and outside
        top = layout.change_limit
        edge[top] = {(1, False): top - 64, (1, True): top, (-1, False): -top, (-1, True): -top - 128}[sign, beyond]
    x = v = 0
    share, lr, gradient = 1.0, 0.0, float(sign)
    flag = 0
    if what == "increment":
        gradient = float(edge[layout.change_limit])
        v = -sign if state_bits == 64 else -sign * 1000  # the sum is inside
        flag = oracle.BAD_INCREMENT
    elif what == "state":
        v = (layout.limit - 2 if sign > 0 else 1 - layout.limit) + sign * beyond
        flag = oracle.STATE_OVERFLOW
    elif what == "change":
        gradient, lr, x = 1.0, float(edge[layout.change_limit]), sign if state_bits == 64 else sign * 1000
        flag = oracle.BAD_CHANGE
    else:
        x, lr = (layout.limit - 2 if sign > 0 else 1 - layout.limit) + sign * beyond, -1.0
        flag = oracle.WEIGHT_OVERFLOW
    bucket = one_weight_of_20(state_bits, x, v)
    step = one_gradient_of_20(gradient, share, lr)
    twin = oracle_twin(bucket)
    oracle_step(twin, step)
    assert twin.flags == [flag * beyond]
    assert_flagged_step_is_undone(bucket, step, [flag * beyond])


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("tensor", range(3))
@pytest.mark.parametrize("what", ["state", "weight", "change", "change beyond the integers", "infinite change"])
def test_overflow_is_flagged_as_the_oracle_does_and_undone(state_bits, instruction_set, what, tensor, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 0.9)
    layout, last = oracle.LAYOUTS[state_bits], FLAG_SIZES[tensor] - 1
    if what == "state":
        bucket.split(bucket.v)[tensor][last] = layout.limit - 1
        step.momentum, step.gradients[tensor][last] = 1.0, 1.0
    elif what == "weight":
        bucket.split(bucket.x)[tensor][last] = -layout.limit
        step.gradients[tensor][last] = step.momentum = 1.0
        step.numbers[tensor] = (0.5, 0.0, 0.01)
        bucket.split(bucket.v)[tensor][last] = 2 ** FRACTION_BITS[state_bits][0]
    else:
        bucket.split(bucket.v)[tensor][last] = layout.limit // 2
        lr = {"change": 2.0**14, "change beyond the integers": 1e25, "infinite change": 3e38}[what]
        step.numbers[tensor] = (step.numbers[tensor][0], 0.0, lr)
    step.gradients = [g if i == tensor else None for i, g in enumerate(step.gradients)]
    bucket.show()
    twin, start = oracle_twin(bucket), bucket.snapshot()
    plan = oracle_step(twin, step)
    wanted = {"state": oracle.STATE_OVERFLOW, "weight": oracle.WEIGHT_OVERFLOW}.get(what, oracle.BAD_CHANGE)
    assert twin.flags[tensor] & wanted
    record = bucket.step(step)
    assert bucket.flags == twin.flags
    assert bucket.used == twin.used(plan)
    assert_is_oracle(bucket, twin)
    bucket.undo(step, record)
    bucket.assert_equals(start)
    bucket.assert_guards()


@WIDTHS
@EACH_INSTRUCTION_SET
def test_used_words_say_how_many_bits_the_integers_need(state_bits, instruction_set, use_instruction_set):
    use_instruction_set(instruction_set)
    layout = oracle.LAYOUTS[state_bits]
    for place in (0, 11, 19):
        for z in (0, 1, -1, -2, 2, 255, -256, layout.limit - 1, -layout.limit):
            states = [torch.zeros(20, dtype=STATE_DTYPES[state_bits]) for _ in range(2)]
            states[1][place] = z
            bucket = Bucket(*([s] for s in states), ["float32"], state_bits, scales=[[oracle.Scale(-40), oracle.Scale(-40)]])
            bucket.step(Step([torch.zeros(20)], [(1.0, 0.0, 0.0)], 1.0))
            ((of_state, of_weight),) = bucket.used
            needed = (z if z >= 0 else -z - 1).bit_length() + 1  # with the sign; no bit at all while there are only zeros
            assert (of_state % 2**64).bit_length() == (needed if z else 0), z
            assert of_weight == 0


# Steps that nobody waits for -----------------------------------------------------------------------------------------


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("bad", [math.nan, 60000.0, -math.inf])
def test_after_a_refused_step_nothing_moves(state_bits, instruction_set, bad, use_instruction_set):
    use_instruction_set(instruction_set)
    assert_stands_still(journey("cpu", state_bits, bad))
