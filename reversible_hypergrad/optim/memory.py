"""What the optimizer keeps, in bytes and in bits per weight and step."""

from collections.abc import Sequence

from reversible_hypergrad.core.rational import information_limit
from reversible_hypergrad.optim.parts import Entry, Part

__all__ = ["measure"]


def measure(parts: Sequence[Part], entries: Sequence[Entry]) -> dict[str, float]:
    """The keys are described at :meth:`ReversibleSGD.memory`."""
    buckets = [part.bucket for part in parts]
    records = [(r, p.bucket) for e in entries for r, p in zip(e.records, parts, strict=False)]
    planes = sum(record.nbytes for record, _ in records)
    accumulators = sum(bucket.accumulators.nbytes for bucket in buckets)
    weight_steps, limit, trajectory = 0, 0.0, 0
    for record, bucket in records:
        moved = [w for w, active in zip(bucket.weights, record.active, strict=True) if active]
        count = sum(w.numel() for w in moved)
        weight_steps += count
        limit += count * information_limit(record.momentum)
        trajectory += sum(w.nbytes for w in moved)
    per = 1.0 / weight_steps if weight_steps else 0.0
    return {
        "state_bytes": sum(bucket.x.nbytes + bucket.v.nbytes for bucket in buckets),
        "initial_bytes": sum(i.nbytes for bucket in buckets for i in bucket.initial if i is not None),
        "information_bytes": planes + accumulators,
        "hash_bytes": 8 * sum(record.hash_before is not None for record, _ in records),
        "trajectory_bytes": trajectory,
        "information_bits_per_weight_step": 8 * (planes + accumulators) * per,
        "payload_bits_per_weight_step": (8 * planes + sum(bucket.payload_bits() for bucket in buckets)) * per,
        "limit_bits_per_weight_step": limit * per,
    }
