"""Undone with a foreign gradient, a step is redone exactly; blocks whose bits would be lost are skipped."""

from __future__ import annotations

import copy
import math
from itertools import product

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
    WIDTHS,
    Bucket,
    Step,
    each_rule,
    flagged_problem,
    normal_gradients,
    numbers_of,
    one_gradient_of_20,
    one_weight_of_20,
    undivided,
)
from oracle_twin import assert_is_oracle, gradient_lists, oracle_step, oracle_twin, planes_of

MOMENTA = [0.1, 0.9, 0.5, 1.0, 2.0**-16]


@WIDTHS
@EACH_INSTRUCTION_SET
@each_rule("momentum", "decay", sgd=product(MOMENTA, [0.0, 0.02]), adam=[(0.1, 0.02), (1.0, 0.0), (2.0**-16, 0.02)])
@pytest.mark.parametrize("scale", ["same", "x30", "large", "zero", "nan", "mixed"])
def test_undo_with_a_wrong_gradient_is_redone(state_bits, instruction_set, rule, decay, scale, momentum, use_instruction_set):
    """move back, undo_states with a wrong gradient, step with the same one: where we were, with every plane."""
    use_instruction_set(instruction_set)
    bucket, step, rng = flagged_problem(state_bits, momentum, rule=rule)
    step.numbers = [numbers_of(rule, 0.5, decay, 0.01 * (i + 1), i) for i in range(3)]
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
    integers = slice(1 + len(bucket.states))
    assert any(not torch.equal(a, b) for a, b in zip(bucket.snapshot()[integers], before[integers], strict=True))
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


PLACES = [(0, 39), (1, 0), (1, 512), (1, 699), (2, 600), (2, 1029)]


@WIDTHS
@EACH_INSTRUCTION_SET
@each_rule("place", sgd=zip(PLACES, strict=True), adam=zip(PLACES[3:5], strict=True))
@pytest.mark.parametrize("loses", [True, False], ids=["shifted", "unshifted"])
def test_foreign_gradient_marks_its_block_and_is_undone_where_nothing_is_lost(
    state_bits, instruction_set, rule, place, loses, use_instruction_set
):
    use_instruction_set(instruction_set)
    bucket, step, _ = flagged_problem(state_bits, 2.0**-16 if loses else 1.0, rule=rule)
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
        for state, expected in zip(bucket.states, before[1:], strict=False):
            assert torch.equal(bucket.split(state)[tensor][here], bucket.split(expected)[tensor][here])
    bucket.step(wrong, bucket.skipped, record)
    twin.step(plan, gradient_lists(wrong), redo=True)
    assert_is_oracle(bucket, twin)
    assert bytes(record.planes.tolist()) == planes_of(plan)


@WIDTHS
@EACH_INSTRUCTION_SET
@each_rule("state", "shift", sgd=product([0], [0, 1, 2, 7, 16]), adam=[(0, 0), (0, 7), (1, 0), (1, 1), (1, 7), (1, 16)])
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_wrong_gradient_at_the_end_of_the_range(state_bits, instruction_set, rule, state, sign, shift, use_instruction_set):
    """Foreign is what leaves [-2^(L - k), 2^(L - k)] (k = 0: what no state is, 2^L, too), by one quantum, and whatever is below 0
    in a wide state; what is inside is undone to where the redo begins."""
    use_instruction_set(instruction_set)
    wide = rule.powers[state] == 2
    end = 0 if wide and sign < 0 else sign * 2 ** (oracle.layouts_of(rule, state_bits)[state].limit_bits - shift)
    momentum = tuple(2.0**-shift if s == state else 1.0 for s in range(len(rule.powers)))
    for beyond in (-2, -1, 0, 1, 2, 100):
        foreign = beyond > 0 or (beyond == 0 and shift == 0 and sign > 0)
        bucket = one_weight_of_20(state_bits, 0, *(0 for _ in rule.powers), rule=rule)
        # The wrong gradient of 1 would take the state from 3 quanta inside to `beyond`.
        away, scale = -sign * (3.0 + beyond), bucket.scales[0][state].after(momentum[state])[0].sigma
        numbers = undivided(rule, 0.0, 0.0, 0.0, away * scale) if wide else undivided(rule, away * scale, 0.0, 0.0)
        record = bucket.step(one_gradient_of_20(0.0, numbers, momentum))
        bucket.split(bucket.states[state])[0][11] = end - sign * 3
        done = bucket.snapshot()
        wrong = one_gradient_of_20(1.0, numbers, momentum)
        bucket.undo(wrong, record)
        assert bucket.flags == [oracle.FOREIGN_GRADIENT * foreign], beyond
        assert bucket.skipped.tolist() == [int(foreign and shift > 0)], beyond
        bucket.step(wrong, bucket.skipped, record)
        bucket.assert_equals(done)


@each_rule("seed", sgd=zip(range(12), strict=True), adam=zip(range(4), strict=True))
def test_whatever_the_gradients_a_step_is_undone_and_redone(seed, rule, use_instruction_set):
    """Random formats, sizes, momenta, magnitudes and garbage: all instruction sets agree, right gradients lead back,
    wrong ones lead back and forth.
    """
    for problem in range(8):
        rng = np.random.default_rng([seed, problem])
        x, states, dtypes, state_bits = random_state(rng, rule)
        sizes = [len(part) for part in x]
        buckets = {name: Bucket(x, states, dtypes, state_bits, rule=rule) for name in INSTRUCTION_SETS}
        for _ in range(4):
            right, wrong = random_right_and_wrong(rng, sizes, dtypes, state_bits, rule)
            traces = []
            for name, bucket in buckets.items():
                use_instruction_set(name)
                traces.append(there_and_back(bucket, right, wrong)[0])
            for name, trace in zip(INSTRUCTION_SETS, traces, strict=True):
                for mine, first in zip(trace, traces[0], strict=True):
                    assert torch.equal(mine, first), name


@each_rule("seed", sgd=zip(range(3), strict=True), adam=zip(range(3), strict=True))
def test_whatever_the_gradients_the_oracle_says_so_too(seed, rule):
    """Random steps, refused ones among them, undone with wrong gradients and redone."""
    skips = 0
    for problem in range(12):
        rng = np.random.default_rng([seed, problem, 1])
        x, states, dtypes, state_bits = random_state(rng, rule)
        bucket = Bucket(x, states, dtypes, state_bits, rule=rule)
        right, wrong = random_right_and_wrong(rng, bucket.sizes, dtypes, state_bits, rule)
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
    none_used = [[0] * (1 + len(bucket.states))] * len(bucket.sizes)

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
