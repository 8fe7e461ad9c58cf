"""The integers and records of one part as tensors, those of each parameter by themselves, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.optim.parts import Part
from reversible_hypergrad.reversible.initial import InitialWeights
from reversible_hypergrad.reversible.outcome import Outcome, hash_of
from reversible_hypergrad.reversible.record import Record, StepNumbers
from reversible_hypergrad.reversible.scales import ScaleState
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.rules.base import Rule

__all__ = ["SIGNS", "TENSORS", "counts_of", "pack_part", "unpack_part"]

Packed = dict[str, Any]

# Of every parameter, beside x, the initial weights and a state_NAME per state of the rule. Rows are steps, oldest first; those
# marked with + have one more, the present.
TENSORS = {
    "planes": torch.uint8,  # of all steps, one after the other
    "numbers": torch.float64,  # the row of Record.numbers
    "shifts": torch.int64,  # the row of Record.shifts
    "fractions": torch.float64,  # + a of the scales, per slot
    "exponents": torch.int64,  # + count, exponent and owed room per slot, then of each state whether it is unset
    "hashes": torch.int64,  # + whether there is one, and the hash, of the part
}


# Of a rule that keeps signs.
SIGNS = {
    "signs": torch.uint8,  # the planes of all steps, one after the other
    "sign_bytes": torch.int64,  # of each step
}


def pack_part(part: Part, records: Sequence[Record]) -> list[Packed]:
    """Of each member."""
    state = part.state
    device = state.x.device
    planes = _split_planes(state, records)
    tables = _tables(part, records)
    packed: list[Packed] = []
    for i, initial in enumerate(state.initial):
        own: Packed = {"x": state.part(i, state.x)}
        own.update({f"state_{name}": state.part(i, z) for name, z in zip(state.rule.states, state.z, strict=True)})
        if initial is not None:
            own["initial_value"] = initial.value
            if initial.index is not None:
                own["initial_index"] = initial.index
        own["planes"] = planes[i]
        if state.rule.keeps_signs:
            own.update(_pack_signs(state, i, records))
        own.update({name: torch.from_numpy(table[:, i].copy()).to(device) for name, table in tables.items()})
        packed.append(own)
    return packed


def _tables(part: Part, records: Sequence[Record]) -> dict[str, np.ndarray[Any, Any]]:
    """By name, of shape (steps, tensors, columns)."""
    state = part.state
    count, slots = len(state.sizes), state.slots
    scales = [*(record.scales for record in records), state.scales.state]
    owed = [*(_known(record.owed) for record in records), state.more_room]
    unset = [*(_known(record.unset) for record in records), state.unset]
    hashes = [_hash_words(hash_) for hash_ in (*(record.hash_before for record in records), part.hash)]
    whole = [np.concatenate([s.count, s.exponent, o, u], 1) for s, o, u in zip(scales, owed, unset, strict=True)]
    return {
        "numbers": _stack([record.numbers.numpy() for record in records], (count, state.slots + 1 + state.moves.numbers)),
        "shifts": _stack([record.shifts.numpy() for record in records], (count, 1 + 2 * slots)),
        "fractions": np.stack([s.a for s in scales]),
        "exponents": np.stack(whole),
        "hashes": np.repeat(np.array(hashes, np.int64)[:, None], count, 1),
    }


def _stack(rows: Sequence[Any], shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    return np.stack(rows) if rows else np.zeros((0, *shape))


def _known(array: Any) -> Any:
    assert array is not None  # a step of the optimizer's own has noted it
    return array


def _hash_words(hash_: int | Outcome | None) -> tuple[int, int]:
    number = hash_of(hash_)
    return (0, 0) if number is None else (1, number)


def _split_planes(state: State, records: Sequence[Record]) -> list[Tensor]:
    """Of each tensor, the bytes that it has in the planes of the steps."""
    pieces: list[list[Tensor]] = [[state.skipped[:0]] for _ in state.sizes]
    for record in records:
        if record.planes.numel():
            for i, piece in enumerate(torch.split(record.planes, _plane_bytes(state, record.shifts).tolist())):
                pieces[i].append(piece)
    return [torch.cat(own) for own in pieces]


def _pack_signs(state: State, i: int, records: Sequence[Record]) -> Packed:
    """The planes of a tensor's signs, one step after the other, and how many bytes each step has."""
    pieces = [state.no_planes, *(record.signs[i] for record in records if record.signs is not None)]
    counts = torch.tensor([piece.numel() for piece in pieces[1:]], dtype=torch.int64, device=state.x.device)
    return {"signs": torch.cat(pieces), "sign_bytes": counts}


def _plane_bytes(state: State, shifts: Tensor) -> Tensor:
    """Of each tensor in one step's planes."""
    return shifts[:, 1::2].sum(1) * state.plane_bytes


def counts_of(packed: Sequence[Packed]) -> list[list[int]]:
    """For each record, how many steps each member had taken before."""
    active = np.stack([own["shifts"].cpu().numpy()[:, 0] for own in packed], 1)
    left = np.cumsum(active[::-1], 0)[::-1]  # of that step and those after it
    counts: list[list[int]] = (np.array([own["taken"] for own in packed]) - left).tolist()
    return counts


def unpack_part(
    packed: Sequence[Packed],
    group: int,
    positions: tuple[int, ...],
    weights: Sequence[Tensor],
    names: Sequence[str],
    rule: Rule,
    state_bits: int,
    given: Sequence[StepNumbers],
) -> tuple[Part, list[Record]]:
    """The part and its records, on ``weights``; tensors are copied.

    Args:
        packed: of each member.
        group: that they belong to.
        positions: in it.
        weights: the members.
        names: of them.
        rule: of the optimizer.
        state_bits: of the integers.
        given: the settings of the steps.
    """
    state = State.__new__(State)
    state.allocate(weights, names, rule, state_bits)
    for i, own in enumerate(packed):
        state.part(i, state.x).copy_(own["x"])
        for name, z in zip(rule.states, state.z, strict=True):
            state.part(i, z).copy_(own[f"state_{name}"])
        index, value = own["initial_index"], own["initial_value"]
        if value.numel():
            state.initial[i] = InitialWeights(index.clone() if index.numel() else None, value.clone())
    tables = {name: np.stack([own[name].cpu().numpy() for own in packed], 1) for name in TENSORS if name != "planes"}
    moments = [_moment(*rows, state.slots) for rows in zip(tables["fractions"], tables["exponents"], strict=True)]
    hashes = [hash_ if known else None for known, hash_ in packed[0]["hashes"].tolist()]
    state.scales.state, state.more_room, state.unset = moments[-1]
    signs = _split_signs(state, packed) if rule.keeps_signs else []
    records = []
    for t, planes in enumerate(_joined_planes(state, packed, tables["shifts"])):
        numbers, shifts = torch.from_numpy(tables["numbers"][t]), torch.from_numpy(tables["shifts"][t])
        before, owed, unset = moments[t]
        after = moments[t + 1][0]
        inactive = shifts[:, 0].numpy() == 0
        record = Record(given[t], before, after, numbers, shifts, planes, hashes[t], unset=unset, owed=owed)
        record.inactive = inactive if inactive.any() else None
        record.signs = [own[t] for own in signs] if signs else None
        records.append(record)
    steps = packed[0]["steps"]
    taken = np.array([own["taken"] for own in packed])
    begun = taken - tables["shifts"][:, :, 0].sum(0)
    offsets = begun if (begun == taken - steps).all() else taken - steps
    return Part(group, positions, state, bool(packed[0]["fresh"]), steps, hashes[-1], offsets=offsets, begun=begun), records


def _moment(fractions: Any, rows: Any, slots: int) -> tuple[ScaleState, Any, Any]:
    """Scales, owed room and what is unset, each per tensor."""
    count, exponent, owed, unset = np.split(rows, [slots, 2 * slots, 3 * slots], 1)
    return ScaleState(fractions, count, exponent), owed, unset.astype(bool)


def _split_signs(state: State, packed: Sequence[Packed]) -> list[Sequence[Tensor]]:
    """Of each tensor, those of each step."""
    return [torch.split(own["signs"].to(state.x.device, copy=True), own["sign_bytes"].tolist()) for own in packed]


def _joined_planes(state: State, packed: Sequence[Packed], shifts: Any) -> list[Tensor]:
    """One tensor per step, of all tensors' bytes in it."""
    sizes = [_plane_bytes(state, torch.from_numpy(of_step)).tolist() for of_step in shifts]
    pieces = [own["planes"].to(state.x.device).split([row[i] for row in sizes]) for i, own in enumerate(packed)]
    return [torch.cat([of_tensor[t] for of_tensor in pieces]) for t in range(len(sizes))]
