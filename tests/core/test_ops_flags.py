"""Bad increments and overflows are flagged and undone exactly; undone with a foreign gradient, a step is redone exactly."""

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
    FRACTION_BITS,
    INSTRUCTION_SETS,
    STATE_DTYPES,
    WIDTHS,
    Bucket,
    Step,
    assert_flagged_step_is_undone,
    assert_is_oracle,
    flagged_problem,
    gradient_lists,
    normal_gradients,
    oracle_step,
    oracle_twin,
    planes_of,
)
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


def one_weight_of_20(state_bits: int, x: int, v: int) -> Bucket:
    """Weight 11 has these integers, all others 0; the scales are 1."""
    states = [torch.zeros(20, dtype=STATE_DTYPES[state_bits]) for _ in range(2)]
    states[0][11], states[1][11] = x, v
    return Bucket(*([s] for s in states), ["float64"], state_bits, scales=[[oracle.Scale(), oracle.Scale()]])


def one_gradient_of_20(gradient: float, share: float = 1.0, lr: float = 0.0, momentum: float = 1.0) -> Step:
    gradients = torch.zeros(20, dtype=torch.float64)
    gradients[11] = gradient
    return Step([gradients], [(share, 0.0, lr)], momentum)


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


# Foreign gradients ---------------------------------------------------------------------------------------------------


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("decay", [0.0, 0.02], ids=["plain", "weight decay"])
@pytest.mark.parametrize("scale", ["same", "x30", "large", "zero", "nan", "mixed"])
@pytest.mark.parametrize("momentum", [0.1, 0.9, 0.5, 1.0, 2.0**-16])
def test_undo_with_a_wrong_gradient_is_redone(state_bits, instruction_set, decay, scale, momentum, use_instruction_set):
    """move back, undo_states with a wrong gradient, step with the same one: where we were, with every plane."""
    use_instruction_set(instruction_set)
    bucket, step, rng = flagged_problem(state_bits, momentum)
    step.numbers = [(share, decay, lr) for share, _, lr in step.numbers]
    step.rescale = [(0, 2)] * 3
    before = bucket.snapshot()
    record = bucket.step(step)
    assert bucket.flags == [0, 0, 0]
    done, written, outcome = bucket.snapshot(), record.planes.clone(), bucket.outcome.clone()

    wrong = copy.copy(step)
    wrong.gradients = normal_gradients(rng, FLAG_SIZES, FLAG_DTYPES, [True] * 3)
    most = 2.0 ** (oracle.LAYOUTS[state_bits].limit_bits - FRACTION_BITS[state_bits][0])
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
    bucket.move(wrong, record, back=True)
    moved = bucket.snapshot()
    bucket.undo_states(wrong, record)
    assert any(not torch.equal(a, b) for a, b in zip(bucket.snapshot()[:2], before[:2], strict=True))
    assert torch.equal(bucket.x, moved[0])  # an undone velocity moves no weight
    bucket.step(wrong, bucket.skipped, record)
    bucket.assert_equals(done)
    assert torch.equal(record.planes, written)
    assert bucket.hash == outcome[0]
    # With the right gradients the way back is still there.
    bucket.undo(step, record)
    assert bucket.flags == [0, 0, 0]
    assert not bucket.skipped.any()
    bucket.assert_equals(before)
    bucket.assert_guards()


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("place", [(0, 39), (1, 0), (1, 512), (1, 699), (2, 600), (2, 1029)], ids=str)
@pytest.mark.parametrize("loses", [True, False], ids=["shifted", "unshifted"])
def test_foreign_gradient_marks_its_block_and_is_undone_where_nothing_is_lost(
    state_bits, instruction_set, place, loses, use_instruction_set
):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 2.0**-16 if loses else 1.0)
    twin = oracle_twin(bucket)
    plan = oracle_step(twin, step)
    record = bucket.step(step)
    tensor, i = place
    wrong = copy.deepcopy(step)
    # Inside the limits of increments, but 2^16 times as large as V; or beyond all limits.
    largest = 2.0 ** (oracle.LAYOUTS[state_bits].change_bits - 1 - FRACTION_BITS[state_bits][0])
    wrong.gradients[tensor][i] = largest if loses else 1e30
    bucket.move(wrong, record, back=True)
    twin.move_weights(plan, back=True)
    before = bucket.snapshot()
    bucket.undo_states(wrong, record)
    twin.undo_states(plan, gradient_lists(wrong))
    assert bucket.flags == twin.flags
    wanted = oracle.FOREIGN_GRADIENT if loses else oracle.BAD_INCREMENT
    assert [flags & wanted for flags in bucket.flags] == [wanted * (k == tensor) for k in range(3)]
    blocks = [oracle.block_count(size) for size in FLAG_SIZES]
    marked = sum(blocks[:tensor]) + i // oracle.BLOCK
    assert bucket.skipped.bool().tolist() == [loses and k == marked for k in range(sum(blocks))]
    assert_is_oracle(bucket, twin)
    if loses:  # inside the block all as it was
        here = slice(i // oracle.BLOCK * oracle.BLOCK, (i // oracle.BLOCK + 1) * oracle.BLOCK)
        assert torch.equal(bucket.split(bucket.v)[tensor][here], bucket.split(before[1])[tensor][here])
    bucket.step(wrong, bucket.skipped, record)
    twin.step(plan, gradient_lists(wrong), redo=True)
    assert_is_oracle(bucket, twin)
    assert bytes(record.planes.tolist()) == planes_of(plan)


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("shift", [0, 1, 2, 7, 16])
def test_wrong_gradient_at_the_end_of_the_range(state_bits, instruction_set, sign, shift, use_instruction_set):
    """Foreign is what leaves [-2^(L - k), 2^(L - k)] (k = 0: what no state is, 2^L, too), by one quantum; what is inside is
    undone to where the redo begins."""
    use_instruction_set(instruction_set)
    end = sign * 2 ** (oracle.LAYOUTS[state_bits].limit_bits - shift)
    right = one_gradient_of_20(0.0, momentum=2.0**-shift)
    for beyond in (-2, -1, 0, 1, 2, 100):
        foreign = beyond > 0 or (beyond == 0 and shift == 0 and sign > 0)
        bucket = one_weight_of_20(state_bits, 0, 0)
        record = bucket.step(right)
        bucket.split(bucket.v)[0][11] = end - sign * 3
        done = bucket.snapshot()
        sigma = record.after[0][0].sigma
        wrong = one_gradient_of_20(-sign * (3 + beyond) * sigma)
        bucket.undo(wrong, record)
        assert bucket.flags == [oracle.FOREIGN_GRADIENT * foreign], beyond
        assert bucket.skipped.tolist() == [int(foreign and shift > 0)], beyond
        bucket.step(wrong, bucket.skipped, record)
        bucket.assert_equals(done)


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
                traces.append(there_and_back(bucket, right, wrong)[0])
            for name, trace in zip(INSTRUCTION_SETS, traces, strict=True):
                for mine, first in zip(trace, traces[0], strict=True):
                    assert torch.equal(mine, first), name


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_gradients_the_oracle_says_so_too(seed):
    """Random steps, refused ones among them, undone with wrong gradients and redone."""
    skips = 0
    for problem in range(12):
        rng = np.random.default_rng([seed, problem, 1])
        x, v, dtypes, state_bits = random_state(rng)
        bucket = Bucket(x, v, dtypes, state_bits)
        right, wrong = random_right_and_wrong(rng, bucket.sizes, dtypes, state_bits)
        for step in (right, wrong):  # the bits of a NaN are no matter of the specification
            for gradient in step.gradients:
                if gradient is not None:
                    gradient.nan_to_num_(nan=7.0)
        skips += follow_the_oracle(bucket, right, wrong)
    assert skips, "no block was ever skipped: the problems are too tame"


def follow_the_oracle(bucket: Bucket, right: Step, wrong: Step) -> int:
    """Flags, used words, hashes, skipped blocks and planes of every phase. Returns how many blocks were skipped."""
    twin = oracle_twin(bucket)
    plan, record = oracle_step(twin, right), bucket.step(right)
    none_used = [[0, 0]] * len(bucket.sizes)

    def check(weights: bool, states: bool) -> None:
        assert_is_oracle(bucket, twin)
        assert bytes(record.planes.tolist()) == planes_of(plan)
        assert bucket.flags == twin.flags
        if not bucket.skipped.any():  # otherwise nobody looks at the hash
            assert bucket.hash == twin.hash(weights, states)

    bucket.skipped.zero_()
    check(True, True)
    assert bucket.used == twin.used(plan)
    bucket.move(wrong, record, back=True)
    twin.move_weights(plan, back=True)
    check(True, False)
    assert bucket.used == none_used
    bucket.undo_states(wrong, record)
    twin.undo_states(plan, gradient_lists(wrong))
    check(False, True)
    assert bucket.used == none_used
    assert bucket.skipped.bool().tolist() == [one for own in twin.skipped for one in own]
    bucket.step(wrong, bucket.skipped, record)
    twin.step(plan, gradient_lists(wrong), redo=True)
    check(True, True)
    assert bucket.hash == twin.hash(True, True)
    return int(bucket.skipped.sum())


# Steps that nobody waits for -----------------------------------------------------------------------------------------


@WIDTHS
@EACH_INSTRUCTION_SET
@pytest.mark.parametrize("bad", [math.nan, 60000.0, -math.inf])
def test_after_a_refused_step_nothing_moves(state_bits, instruction_set, bad, use_instruction_set):
    use_instruction_set(instruction_set)
    assert_stands_still(journey("cpu", state_bits, bad))
