"""The dispatcher ops agree with every instruction set and thread count, and hash every bit of the state."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import oracle
import pytest
import torch
from core_problems import (
    DTYPES,
    EACH_INSTRUCTION_SET,
    EACH_RULE,
    INSTRUCTION_SETS,
    OPS,
    STATE_DTYPES,
    WIDTHS,
    Bucket,
    Step,
    each_rule,
    flagged_problem,
    integers,
    momentum_schedule,
    normal_gradients,
    numbers_of,
    random_integers,
    same_bits,
    slot_dtypes,
    undivided,
    units,
)

# Instruction sets and threads ----------------------------------------------------------------------------------------


def random_run(rule, state_bits, use_instruction_set, name, steps):
    """Random steps on 100 k weights and back. Returns all hashes and outcomes, the final state and the last planes."""
    rng = np.random.default_rng(7)
    sizes, dtypes = [40_000, 30_000, 20_011, 10_000], list(DTYPES)
    x, states = random_integers(rng, sizes, state_bits, rule)
    pool = [normal_gradients(rng, sizes, dtypes, [True] * 4) for _ in range(4)]
    numbers = [numbers_of(rule, 0.5, 0.02, 0.002 * (i + 1), i) for i in range(4)]
    bucket = Bucket(x, states, dtypes, state_bits, rule=rule)
    start = bucket.snapshot()
    use_instruction_set(name)
    hashes, tape = [], []
    for t, momentum in enumerate(momentum_schedule("changing", steps)):
        gradients = list(pool[t % 4])
        if t % 3 == 0:
            gradients[t % 4] = None
        step = Step(gradients, numbers, [momentum, 0.95, momentum, 0.9], rescale=[(0, int(t == steps // 2))] * 4)
        tape.append((step, bucket.step(step)))
        assert bucket.flags == [0] * 4
        hashes.append(bucket.hash)
    end = [*bucket.snapshot(), bucket.outcome.clone(), *(record.planes.clone() for _, record in tape[-10:])]
    for step, record in reversed(tape):
        bucket.undo(step, record)
        assert bucket.flags == [0] * 4
        hashes.append(bucket.hash)
    bucket.assert_equals(start)
    bucket.assert_guards()
    return hashes, end


@WIDTHS
@each_rule("steps", sgd=[(100,)], adam=[(10,)])
def test_instruction_sets_and_threads_agree_on_a_long_run(state_bits, rule, steps, use_instruction_set, set_num_threads):
    results = {}
    for threads in (1, 2):
        set_num_threads(threads)
        for name in INSTRUCTION_SETS if threads == 1 else INSTRUCTION_SETS[:1]:
            results[name, threads] = random_run(rule, state_bits, use_instruction_set, name, steps)
    hashes, end = results.pop((INSTRUCTION_SETS[0], 1))
    assert len(set(hashes)) == len(hashes)
    for which, (other_hashes, other_end) in results.items():
        assert other_hashes == hashes, which
        for mine, other in zip(end, other_end, strict=True):
            assert same_bits(mine, other), which


@each_rule(
    "state_bits",
    "instruction_set",
    sgd=product(STATE_DTYPES, INSTRUCTION_SETS),
    adam=product([32], INSTRUCTION_SETS),
)
def test_weights_streamed_past_the_cache_are_the_same(state_bits, instruction_set, rule, use_instruction_set):
    """From 32 MiB of visible weights on, they are written differently; the values and the neighbours stay the same."""
    use_instruction_set(instruction_set)
    rng = np.random.default_rng(11)
    sizes, dtypes = [2**22 + 37, 999, 1003, 70_001], ["float64", "bfloat16", "float16", "float32"]
    one = units(state_bits)[1]
    *of_states, of_x = slot_dtypes(rule, state_bits)
    x = [torch.from_numpy(rng.integers(-one, one, size)).to(of_x) for size in sizes]
    states = [[(part.flip(0) % 2**20).to(dtype) for part in x] for dtype in of_states]
    gradients = [torch.from_numpy(rng.standard_normal(size)).to(DTYPES[d]) for size, d in zip(sizes, dtypes, strict=True)]
    numbers = [numbers_of(rule, 0.5, 0.02, 0.01)] * 4
    bucket = Bucket(x, states, dtypes, state_bits, rule=rule)
    small = Bucket(x[1:], [state[1:] for state in states], dtypes[1:], state_bits, rule=rule)
    start = bucket.snapshot()
    step = Step(gradients, numbers, 0.3)
    record = bucket.step(step)
    small.step(Step(gradients[1:], numbers[1:], 0.3))
    for mine, other in zip(bucket.split(bucket.x)[1:], small.split(small.x), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(bucket.weights[1:], small.weights, strict=True):
        assert same_bits(mine, other)
    assert same_bits(bucket.weights[0], bucket.split(bucket.x)[0].double() / one)
    assert not torch.equal(bucket.x, start[0])
    bucket.undo(step, record)
    bucket.assert_equals(start)
    bucket.assert_guards()


def test_unknown_instruction_set_is_refused_and_changes_nothing(use_instruction_set):
    with pytest.raises(RuntimeError, match="instruction set 'abacus'"):
        use_instruction_set("abacus")
    assert OPS.instruction_sets().split() == INSTRUCTION_SETS
    assert "portable" in INSTRUCTION_SETS


# Hash ----------------------------------------------------------------------------------------------------------------


def still(bucket: Bucket) -> Step:
    """A step that changes nothing."""
    gradients = [torch.zeros(size, dtype=w.dtype) for size, w in zip(bucket.sizes, bucket.weights, strict=True)]
    return Step(gradients, [undivided(bucket.rule, 1.0, 0.0, 0.0)] * len(gradients), 1.0)


def hash_of(bucket: Bucket) -> int:
    """The hash of X and the states as they stand."""
    snapshot = bucket.snapshot()
    bucket.step(still(bucket))
    for mine, expected in zip((bucket.x, *bucket.states), snapshot, strict=False):
        assert torch.equal(mine, expected)
    return bucket.hash


@WIDTHS
@EACH_INSTRUCTION_SET
@EACH_RULE
def test_hash_changes_with_every_bit_of_the_state(state_bits, instruction_set, rule, use_instruction_set):
    use_instruction_set(instruction_set)
    rng = np.random.default_rng(13)
    bucket = Bucket(*random_integers(rng, [21, 520], state_bits, rule), ["float32", "float64"], state_bits, rule=rule)
    seen = {hash_of(bucket)}
    count = 1
    for state, layout in zip((*bucket.states, bucket.x), oracle.layouts_of(rule, state_bits), strict=True):
        for part, i in ((0, 0), (0, 20), (1, 3), (1, 511), (1, 512), (1, 519)):
            values = bucket.split(state)[part]
            before = int(values[i])
            for bit in range(layout.limit_bits):
                values[i] = before ^ (1 << bit)
                seen.add(hash_of(bucket))
                count += 1
            values[i] = before
    assert len(seen) == count


@WIDTHS
@EACH_INSTRUCTION_SET
@EACH_RULE
def test_hash_changes_when_values_trade_places(state_bits, instruction_set, rule, use_instruction_set):
    use_instruction_set(instruction_set)
    rng = np.random.default_rng(17)
    sizes, dtypes = [21, 1100], ["float32", "float64"]
    widths = [layout.bits for layout in oracle.layouts_of(rule, state_bits)]
    x, *states = ([integers(rng, 2**20, size, bits) for size in sizes] for bits in reversed(widths))
    bucket = Bucket(x, states[::-1], dtypes, state_bits, rule=rule)
    start = hash_of(bucket)
    places = [(0, 4), (0, 5), (0, 12), (0, 20), (1, 5), (1, 6), (1, 69), (1, 5 + 512), (1, 1030), (1, 1099)]
    for state in (bucket.x, *bucket.states):
        parts = bucket.split(state)
        for a, i in places:
            for b, j in places:
                one, other = int(parts[a][i]), int(parts[b][j])
                if one == other:
                    continue
                parts[a][i], parts[b][j] = other, one
                assert hash_of(bucket) != start, ((a, i), (b, j))
                # Nor do opposite changes cancel.
                parts[a][i], parts[b][j] = one + 1, other - 1
                assert hash_of(bucket) != start, ((a, i), (b, j))
                parts[a][i], parts[b][j] = one, other
    for (part, i), (a, b) in product(places, combinations((bucket.x, *bucket.states), 2)):  # X and V of a weight
        one, other = int(bucket.split(a)[part][i]), int(bucket.split(b)[part][i])
        bucket.split(a)[part][i], bucket.split(b)[part][i] = other, one
        assert hash_of(bucket) != start
        bucket.split(a)[part][i], bucket.split(b)[part][i] = one, other
    assert hash_of(bucket) == start


@WIDTHS
@EACH_RULE
def test_hash_is_of_what_the_phase_moved(state_bits, rule):
    """Moving the weights hashes X, undoing the states these, a step both; what lies between the tensors is in none."""
    bucket, _, _ = flagged_problem(state_bits, 0.9, rule=rule)
    both, step = hash_of(bucket), still(bucket)
    record = bucket.record(step)
    bucket.move(step, record, back=False)
    x_only = bucket.hash
    bucket.move(step, record, back=True)
    assert bucket.hash == x_only
    bucket.undo_states(step, record)
    assert (x_only + bucket.hash - both) % 2**64 == 0
    bucket.x[40:48] = 5
    assert hash_of(bucket) == both


@WIDTHS
@EACH_INSTRUCTION_SET
@EACH_RULE
def test_hash_of_tensors_that_take_no_part(state_bits, instruction_set, rule, use_instruction_set):
    use_instruction_set(instruction_set)
    bucket, _, _ = flagged_problem(state_bits, 0.9, rule=rule)
    both, step = hash_of(bucket), still(bucket)
    for i in (0, 2):
        step.gradients[i] = None
    bucket.step(step)
    assert bucket.hash == both
    assert [any(used) for used in bucket.used] == [False, True, False]


@WIDTHS
@EACH_RULE
def test_without_hash_the_outcome_holds_the_flags_and_used_words_only(state_bits, rule):
    bucket, _, _ = flagged_problem(state_bits, 0.9, rule=rule)
    step = still(bucket)
    bucket.step(step)
    outcome, record = bucket.outcome.clone(), bucket.record(step)
    given = record.numbers, record.shifts, [], record.planes, torch.empty(0, dtype=torch.uint8)
    bucket.ops.step(rule.name, bucket.weights, step.gradients, bucket.x, bucket.states, *given, False, bucket.outcome)
    assert bucket.outcome.tolist() == [0, *outcome[1:].tolist()]
