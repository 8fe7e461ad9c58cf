"""The integers and the log of one part as tensors, by parameter, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from reversible_hypergrad.optim.parts import Part
from reversible_hypergrad.reversible import step_log
from reversible_hypergrad.reversible.initial import InitialWeights
from reversible_hypergrad.reversible.outcome import hash_of
from reversible_hypergrad.reversible.scales import ScaleState
from reversible_hypergrad.reversible.state import State

__all__ = ["NUMBERS", "TENSORS", "pack_part", "unpack_part"]

Packed = dict[str, Any]

# Of every parameter. The hash is the part's.
NUMBERS = ("part", "place", "fresh", "steps", "taken", "begun", "hashed", "hash")
# Of every parameter, beside x, the initial weights and a state_NAME per state of the rule; the log is the whole part's, and lies
# with its first parameter.
TENSORS = {
    "fractions": torch.float64,  # a of the scales, per slot
    "exponents": torch.int64,  # count, exponent and owed room per slot, then of each state whether it is unset
    **{f"log_{name}": dtype for name, dtype in step_log.TENSORS.items()},
}


def pack_part(part: Part, number: int) -> list[Packed]:
    """Of each member.

    Args:
        number: of the part.
    """
    state, scales, hash_ = part.state, part.state.scales.state, hash_of(part.hash)
    exponents = np.concatenate([scales.count, scales.exponent, state.more_room, state.unset], 1)
    packed: list[Packed] = []
    for i, initial in enumerate(state.initial):
        own: Packed = {"part": number, "place": i, "fresh": int(part.fresh), "steps": part.steps}
        own.update(taken=part.counts[i], begun=int(part.begun[i]), hashed=int(hash_ is not None), hash=hash_ or 0)
        own["x"] = state.part(i, state.x)
        own.update({f"state_{name}": state.part(i, z) for name, z in zip(state.rule.states, state.z, strict=True)})
        if initial is not None:
            own["initial_value"] = initial.value
            if initial.index is not None:
                own["initial_index"] = initial.index
        own["fractions"] = torch.from_numpy(scales.a[i].copy()).to(state.x.device)
        own["exponents"] = torch.from_numpy(exponents[i].copy()).to(state.x.device)
        packed.append(own)
    packed[0].update({f"log_{name}": tensor for name, tensor in part.log.pack().items()})
    return packed


def unpack_part(packed: Sequence[Packed], group: int, positions: tuple[int, ...], state: State) -> Part:
    """The part; tensors are copied.

    Args:
        packed: of each member.
        group: that they belong to.
        positions: in it.
        state: on the members, allocated.
    """
    for i, own in enumerate(packed):
        state.part(i, state.x).copy_(own["x"])
        for name, z in zip(state.rule.states, state.z, strict=True):
            state.part(i, z).copy_(own[f"state_{name}"])
        index, value = own["initial_index"], own["initial_value"]
        if value.numel():
            state.initial[i] = InitialWeights(index.clone() if index.numel() else None, value.clone())
    fractions, exponents = (np.stack([own[name].cpu().numpy() for own in packed]) for name in ("fractions", "exponents"))
    count, exponent, state.more_room, unset = np.split(exponents, [state.slots * k for k in (1, 2, 3)], 1)
    state.scales.state, state.unset = ScaleState(fractions, count, exponent), unset.astype(bool)
    first = packed[0]
    begun = np.array([own["begun"] for own in packed])
    offsets = np.array([own["taken"] - own["steps"] for own in packed])
    part = Part(
        group,
        positions,
        state,
        fresh=bool(first["fresh"]),
        steps=first["steps"],
        hash=first["hash"] if first["hashed"] else None,
        offsets=begun if (begun == offsets).all() else offsets,
        begun=begun,
    )
    part.log.load({name: first[f"log_{name}"] for name in step_log.TENSORS})
    return part
