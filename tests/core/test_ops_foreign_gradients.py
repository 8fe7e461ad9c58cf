"""Undone with a foreign gradient, a step is redone exactly; blocks whose bits would be lost are skipped."""

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
    WIDTHS,
    Bucket,
    Step,
    flagged_problem,
    normal_gradients,
    one_gradient_of_20,
    one_weight_of_20,
)
from oracle_twin import assert_is_oracle, gradient_lists, oracle_step, oracle_twin, planes_of


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
