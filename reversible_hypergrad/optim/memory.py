"""What the optimizer keeps, in bytes and in bits per weight and step."""

from collections.abc import Iterable, Sequence

import numpy as np

from reversible_hypergrad.optim.parts import Entry, Part
from reversible_hypergrad.reversible.record import Record

__all__ = ["measure"]


def measure(parts: Sequence[Part], entries: Sequence[Entry]) -> dict[str, float]:
    """The keys are described at :meth:`ReversibleSGD.memory`."""
    states = [part.state for part in parts]
    records = [(r, p.state) for e in entries for r, p in zip(e.records, parts, strict=False)]
    planes = sum(record.planes.nbytes + sum(own.nbytes for own in record.signs or ()) for record, _ in records)
    weight_steps, limit, trajectory = 0, 0.0, 0
    for record, state in records:
        moved = record.shifts[:, 0].numpy() * state.sizes
        weight_steps += int(moved.sum())
        limit -= float((moved[:, None] * np.log2(record.given.factors)).sum())
        if state.rule.keeps_signs:
            limit += int(moved.sum())
        trajectory += int((moved * [weight.itemsize for weight in state.weights]).sum())
    per = 1.0 / weight_steps if weight_steps else 0.0
    return {
        "state_bytes": sum(state.nbytes for state in states),
        "initial_bytes": sum(i.nbytes for state in states for i in state.initial if i is not None),
        "information_bytes": planes,
        "scale_bytes": _scale_bytes(record for record, _ in records),
        "hash_bytes": 8 * sum(record.hash_before is not None for record, _ in records),
        "trajectory_bytes": trajectory,
        "information_bits_per_weight_step": 8 * planes * per,
        "limit_bits_per_weight_step": limit * per,
    }


def _scale_bytes(records: Iterable[Record]) -> int:
    """Of the numbers per tensor and step. Records share the arrays that a step left as they were."""
    arrays = {}
    for record in records:
        for scales in (record.scales, record.scales_after):
            arrays.update({id(array): array.nbytes for array in (scales.a, scales.count, scales.exponent)})
        arrays.update({id(tensor): tensor.nbytes for tensor in (record.numbers, record.shifts)})
    return sum(arrays.values())
