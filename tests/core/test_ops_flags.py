"""Bad increments and overflows are flagged and undone exactly, and stop the steps behind them."""

from __future__ import annotations

import math
from itertools import product

import oracle
import pytest
import torch
from core_problems import (
    EACH_INSTRUCTION_SET,
    EACH_RULE,
    FLAG_SIZES,
    FRACTION_BITS,
    INSTRUCTION_SETS,
    WIDTHS,
    Bucket,
    Step,
    assert_flagged_step_is_undone,
    each_rule,
    flagged_problem,
    one_gradient_of_20,
    one_weight_of_20,
    undivided,
    zeros,
)
from oracle_twin import assert_is_oracle, oracle_step, oracle_twin
from ticket_journey import assert_stands_still, journey

BAD_GRADIENTS = {"nan": math.nan, "-nan": -math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e30, "max": -3.3e38}


PLACES = [[(0, 0)], [(1, 513)], [(1, 699), (2, 7)], [(2, 1029)], [(0, i) for i in range(40)]]


@WIDTHS
@EACH_INSTRUCTION_SET
@each_rule("places", sgd=zip(PLACES, strict=True), adam=zip(PLACES[1:3], strict=True))
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("momentum", [1.0, 0.1])
def test_bad_gradient_is_flagged_and_undone(state_bits, instruction_set, rule, bad, places, momentum, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, momentum, rule=rule)
    for tensor, i in places:
        step.gradients[tensor][i] = BAD_GRADIENTS[bad]
    spoilt = {tensor for tensor, _ in places}
    assert_flagged_step_is_undone(bucket, step, [oracle.BAD_INCREMENT * (i in spoilt) for i in range(3)])


@WIDTHS
@EACH_RULE
def test_bad_gradient_leaves_the_other_tensors_alone(state_bits, rule):
    bucket, step, _ = flagged_problem(state_bits, 0.9, rule=rule)
    other, same, _ = flagged_problem(state_bits, 0.9, rule=rule)
    step.gradients[1][5] = math.nan
    bucket.step(step)
    other.step(same)
    for state, expected in zip((bucket.x, *bucket.states), (other.x, *other.states), strict=True):
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
OF_WIDE = ["wide increment", "wide state"]


@WIDTHS
@EACH_INSTRUCTION_SET
@each_rule("what", sgd=zip(AT_LIMITS, strict=True), adam=zip([*AT_LIMITS, *OF_WIDE], strict=True))
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("beyond", [False, True], ids=["inside", "outside"])
def test_flags_begin_at_the_limit(state_bits, instruction_set, rule, sign, beyond, what, use_instruction_set):
    """In range is [-limit, limit)."""
    use_instruction_set(instruction_set)
    layout, wide = oracle.LAYOUTS[state_bits], oracle.SQUARES

    def at_edge(limit: int, below: int, above: int) -> float:
        """The last number inside or the first outside, if they are this far from the limit."""
        return float(limit - below * (not beyond) if sign > 0 else -limit - above * beyond)

    def almost(limit: int) -> int:
        """1 more of this sign is inside, or outside."""
        return (limit - 2 if sign > 0 else 1 - limit) + sign * beyond

    # The real type's steps beside the limits: float has 24 bits.
    steps, wide_steps = {64: ((1, 1), (2**8, 2**9)), 32: ((64, 128), (2**37, 2**38))}[state_bits]
    x, v, s, share, squares, lr, gradient = 0, 0, 0, 1.0, 0.0, 0.0, float(sign)
    flag = {"increment": oracle.BAD_INCREMENT, "state": oracle.STATE_OVERFLOW}.get(what.removeprefix("wide "), 0)
    if what == "increment":
        gradient = at_edge(layout.change_limit, *steps)
        v = -sign * 1000  # the sum is inside
    elif what == "state":
        v = almost(layout.limit)
    elif what == "change":
        gradient, lr, x = 1.0, at_edge(layout.change_limit, *steps), sign * 1000
        flag = oracle.BAD_CHANGE
    elif what == "weight":
        x, lr = almost(layout.limit), -1.0
        flag = oracle.WEIGHT_OVERFLOW
    elif what == "wide increment":
        share, squares = 0.0, at_edge(wide.change_limit, *wide_steps)
    else:
        share, squares, s = 0.0, float(sign), almost(wide.limit)
    states = (v, s)[: len(rule.powers)]
    bucket = one_weight_of_20(state_bits, x, *states, rule=rule)
    step = one_gradient_of_20(gradient, undivided(rule, share, 0.0, lr, squares))
    twin = oracle_twin(bucket)
    oracle_step(twin, step)
    assert twin.flags == [flag * beyond]
    assert_flagged_step_is_undone(bucket, step, [flag * beyond])


OVERFLOWS = [*product(["state", "weight", "change", "change beyond the integers", "infinite change"], range(3))]
OF_ADAM = [
    ("state", 0),
    ("wide state", 1),
    ("weight", 2),
    ("change", 1),
    ("change beyond the integers", 2),
    ("infinite change", 1),
]


@WIDTHS
@EACH_INSTRUCTION_SET
@each_rule("what", "tensor", sgd=OVERFLOWS, adam=OF_ADAM)
def test_overflow_is_flagged_as_the_oracle_does_and_undone(state_bits, instruction_set, rule, what, tensor, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 0.9, rule=rule)
    layout, last = oracle.LAYOUTS[state_bits], FLAG_SIZES[tensor] - 1
    if what.endswith("state"):
        state, layout = ("state", "wide state").index(what), oracle.SQUARES if what == "wide state" else layout
        bucket.split(bucket.states[state])[tensor][last] = layout.limit - 1
        step.momentum, step.gradients[tensor][last] = 1.0, 1.0
    elif what == "weight":
        bucket.split(bucket.x)[tensor][last] = -layout.limit
        step.gradients[tensor][last] = step.momentum = 1.0
        step.numbers[tensor] = undivided(rule, 0.5, 0.0, 0.01)
        bucket.split(bucket.v)[tensor][last] = 2 ** FRACTION_BITS[state_bits][0]
    else:
        bucket.split(bucket.v)[tensor][last] = layout.limit // 2
        lr = {"change": 2.0**14, "change beyond the integers": 1e25, "infinite change": 3e38}[what]
        step.numbers[tensor] = undivided(rule, step.numbers[tensor][0], 0.0, lr, 0.1)
    step.gradients = [g if i == tensor else None for i, g in enumerate(step.gradients)]
    bucket.show()
    twin, start = oracle_twin(bucket), bucket.snapshot()
    plan = oracle_step(twin, step)
    wanted = {"state": oracle.STATE_OVERFLOW, "weight": oracle.WEIGHT_OVERFLOW, "change": oracle.BAD_CHANGE}
    wanted = next(flag for word, flag in wanted.items() if word in what.split())
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
@each_rule("state", sgd=[(0,)], adam=[(0,), (1,)])
def test_used_words_say_how_many_bits_the_integers_need(state_bits, instruction_set, rule, state, use_instruction_set):
    use_instruction_set(instruction_set)
    layout = oracle.layouts_of(rule, state_bits)[state]
    for place in (0, 11, 19):
        for z in (0, 1, -1, -2, 2, 255, -256, layout.limit - 1, -layout.limit):
            *states, x = zeros(rule, state_bits, 20)
            states[state][place] = z
            scales = [[oracle.Scale(-40) for _ in (*states, x)]]
            bucket = Bucket([x], [[own] for own in states], ["float32"], state_bits, scales=scales, rule=rule)
            bucket.step(Step([torch.zeros(20)], [undivided(rule, 1.0, 0.0, 0.0)], 1.0))
            (words,) = bucket.used
            needed = (z if z >= 0 else -z - 1).bit_length() + 1  # with the sign; no bit at all while there are only zeros
            assert (words[state] % 2**64).bit_length() == (needed if z else 0), z
            assert not any(words[:state] + words[state + 1 :])


# Steps that nobody waits for -----------------------------------------------------------------------------------------


@WIDTHS
@each_rule(
    "instruction_set",
    "bad",
    sgd=product(INSTRUCTION_SETS, [math.nan, 60000.0, -math.inf]),
    adam=[(INSTRUCTION_SETS[0], math.nan)],
)
def test_after_a_refused_step_nothing_moves(state_bits, instruction_set, rule, bad, use_instruction_set):
    use_instruction_set(instruction_set)
    assert_stands_still(journey("cpu", state_bits, bad, rule=rule))
