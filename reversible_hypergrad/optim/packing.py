"""The integers and records of one part as tensors, and back."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.optim.parts import Part
from reversible_hypergrad.reversible.bucket import Bucket, Coefficients, Record
from reversible_hypergrad.reversible.initial import InitialWeights

__all__ = ["pack_part", "unpack_part"]

Packed = dict[str, Any]


def pack_part(part: Part, records: Sequence[Record]) -> list[Packed]:
    """Of each member; what members share is with the first."""
    bucket = part.bucket
    device = bucket.x.device
    packed: list[Packed] = []
    for i, initial in enumerate(bucket.initial):
        own: Packed = {"x": bucket.state_of(i, bucket.x), "v": bucket.state_of(i, bucket.v)}
        own["active"] = torch.tensor([record.active[i] for record in records], dtype=torch.uint8, device=device)
        if initial is not None:
            own["initial_value"] = initial.value
            if initial.index is not None:
                own["initial_index"] = initial.index
        packed.append(own)
    packed[0]["accumulators"] = bucket.accumulators
    planes = [plane for record in records for plane in record.planes]
    packed[0]["planes"] = torch.cat([bucket.skipped[:0], *planes])
    packed[0]["plane_bytes"] = torch.tensor([record.nbytes for record in records], dtype=torch.int64, device=device)
    numbers = [[c.gradient, c.decay, c.lr] for record in records for c in record.coefficients]
    packed[0]["numbers"] = torch.tensor(numbers, dtype=torch.float64, device=device)
    words = [_signed([bucket.bound, *_hash_words(part.hash), *[0] * 10])]
    for r in records:
        words.append(_signed([r.bound, *_hash_words(r.hash_before), r.momentum.numerator, r.momentum.denominator, *r.spill_bits]))
    packed[0]["words"] = torch.tensor(words, dtype=torch.int64, device=device)
    return packed


def _hash_words(hash_: Any) -> list[int]:
    return [0, 0] if hash_ is None else [1, hash_]


def _signed(words: Sequence[int]) -> list[int]:
    return [w - 2**64 if w >= 2**63 else w for w in words]


def unpack_part(
    packed: Sequence[Packed],
    group: int,
    positions: tuple[int, ...],
    weights: Sequence[Tensor],
    names: Sequence[str],
    state_bits: int,
) -> tuple[Part, list[Record]]:
    bucket = Bucket.__new__(Bucket)
    bucket.allocate(weights, names, state_bits)
    for i, own in enumerate(packed):
        bucket.state_of(i, bucket.x).copy_(own["x"])
        bucket.state_of(i, bucket.v).copy_(own["v"])
        index, value = own["initial_index"], own["initial_value"]
        if value.numel():
            bucket.initial[i] = InitialWeights(index.clone() if index.numel() else None, value.clone())
    first = packed[0]
    bucket.accumulators.copy_(first["accumulators"])
    now, *before = first["words"].tolist()
    bucket.bound = now[0] % 2**64
    active = list(zip(*[own["active"].bool().tolist() for own in packed], strict=True))
    planes = first["planes"].to(bucket.x.device).split(first["plane_bytes"].tolist())
    records = []
    for words, plane, takes_part, numbers in zip(before, planes, active, first["numbers"].tolist(), strict=True):
        bound, known, hash_, n, d, *spill_bits = words
        sizes = [bucket.lanes * bits // 8 for bits in spill_bits if bits]
        record = Record(
            momentum=Fraction(n, d),
            coefficients=(Coefficients(*numbers),),
            active=takes_part,
            bound=bound % 2**64,
            spill_bits=tuple(spill_bits),
            planes=[p.clone() for p in plane.split(sizes)] if sizes else [],
            hash_before=hash_ if known else None,
        )
        records.append(record)
    part = Part(group, positions, bucket, bool(first["fresh"]), first["steps"], now[2] if now[1] else None)
    return part, records
