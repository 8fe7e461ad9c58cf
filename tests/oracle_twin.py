"""The plain-integer oracle beside a bucket of the dispatcher ops."""

from __future__ import annotations

import oracle
import torch
from core_problems import BITS_OF, INSTRUCTION_SETS, Bucket, Record, Step, same_bits


def oracle_twin(bucket: Bucket) -> oracle.Bucket:
    tensors = zip(*(bucket.split(slot) for slot in (*bucket.states, bucket.x)), strict=True)
    slots = [[part.tolist() for part in tensor] for tensor in tensors]
    return oracle.Bucket(bucket.rule, bucket.state_bits, slots, bucket.scales)


def gradient_lists(step: Step) -> list[list[float] | None]:
    return [None if g is None else g.double().tolist() for g in step.gradients]


def oracle_step(twin: oracle.Bucket, step: Step) -> list[oracle.TensorStep | None]:
    steps = step.plan(twin.scales, twin.rule)
    twin.step(steps, gradient_lists(step))
    return steps


def planes_of(steps: list[oracle.TensorStep | None]) -> bytes:
    return b"".join(step.planes() for step in steps if step is not None)


def assert_is_oracle(bucket: Bucket, twin: oracle.Bucket) -> None:
    for s, slot in enumerate((*bucket.states, bucket.x)):
        name = f"states[{s}]" if s < len(bucket.states) else "X"
        for i, part in enumerate(bucket.split(slot)):
            assert part.tolist() == twin.slots[i][s], f"{name}[{i}] differs"
    for i, (visible, dtype) in enumerate(zip(bucket.weights, bucket.dtypes, strict=True)):
        size = visible.element_size()
        patterns = [p % 2 ** (8 * size) for p in visible.view(BITS_OF[size]).tolist()]
        assert patterns == twin.visible(i, dtype), f"weights[{i}] ({dtype}) differ"


def check_against_oracle(rule, x, states, dtypes, state_bits, steps: list[Step], use_instruction_set, scales=None) -> list[int]:
    """Every instruction set follows the oracle step by step, then goes back to the start. Returns all shifts."""
    buckets = {name: Bucket(x, states, dtypes, state_bits, scales=scales, rule=rule) for name in INSTRUCTION_SETS}
    first = buckets[INSTRUCTION_SETS[0]]
    twin = oracle_twin(first)
    assert_is_oracle(first, twin)
    history, plans, hashes = [first.snapshot()], [], []
    records: dict[str, list[Record]] = {name: [] for name in buckets}
    for step in steps:
        plans.append(oracle_step(twin, step))
        assert not any(twin.flags), "outside the specified range"
        hashes.append(twin.hash(weights=True, states=True))
        planes = planes_of(plans[-1])
        for name, bucket in buckets.items():
            use_instruction_set(name)
            records[name].append(bucket.step(step))
            if bucket is first:
                assert_is_oracle(bucket, twin)
                history.append(bucket.snapshot())
            bucket.assert_equals(history[-1])
            assert bytes(records[name][-1].planes.tolist()) == planes, f"{name}: planes differ"
            assert bucket.flags == twin.flags, name
            assert bucket.used == twin.used(plans[-1]), name
            assert bucket.hash == hashes[-1], name
    _check_way_back(buckets, steps, records, history, hashes, use_instruction_set)
    return [k for plan in plans for step in plan if step is not None for k, _ in step.shifts]


def _check_way_back(buckets, steps, records, history, hashes, use_instruction_set) -> None:
    for name, bucket in buckets.items():
        use_instruction_set(name)
        none = [0] * len(bucket.sizes)
        for t in reversed(range(len(steps))):
            step, record = steps[t], records[name][t]
            bucket.move(step, record, back=True)
            assert bucket.flags == none
            moved = bucket.hash
            assert torch.equal(bucket.x, history[t][0])
            for mine, expected in zip(bucket.weights, history[t][1 + len(bucket.states) :], strict=True):
                assert same_bits(mine, expected)
            bucket.undo_states(step, record)
            assert bucket.flags == none
            bucket.assert_equals(history[t])
            if t:  # what an undo returns to has the hash that the step there had
                assert (moved + bucket.hash - hashes[t - 1]) % 2**64 == 0
        assert not bucket.skipped.any()
        bucket.assert_guards()
