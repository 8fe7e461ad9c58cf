"""The reversible state as plain types and tensors, and back, checked."""

import hashlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.optim.parts import Entry, Part
from reversible_hypergrad.optim.settings import Settings, check_unsupported
from reversible_hypergrad.reversible.bucket import Bucket, Coefficients, Record
from reversible_hypergrad.reversible.initial import InitialWeights

__all__ = ["KEY", "pack", "unpack"]

KEY = "reversible"
_VERSION = 1


def pack(state_bits: int, steps_taken: int, parts: list[Part], entries: list[Entry]) -> dict[str, Any]:
    """Loadable with ``torch.load(..., weights_only=True)``."""
    packed = {
        "version": _VERSION,
        "state_bits": state_bits,
        "steps_taken": steps_taken,
        "parts": [_pack_part(part) for part in parts],
        "entries": [_pack_entry(entry) for entry in entries],
    }
    return {**packed, "digest": _digest(packed)}


def _digest(packed: Any) -> str:
    """SHA-256 over every key, number and bit."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data if value.numel() else b"")
        elif isinstance(value, dict):
            sha.update(b"{")
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            sha.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        else:
            sha.update(f"{type(value).__name__} {value!r};".encode())

    add(packed)
    return sha.hexdigest()


def _pack_part(part: Part) -> dict[str, Any]:
    bucket = part.bucket
    return {
        "group": part.group,
        "members": list(part.members),
        "sizes": bucket.sizes,
        "fresh": part.fresh,
        "steps": part.steps,
        "hash": part.hash,
        "bound": bucket.bound,
        "x": bucket.x,
        "v": bucket.v,
        "accumulators": bucket.accumulators,
        "initial": [None if i is None else [i.index, i.value] for i in bucket.initial],
    }


def _pack_entry(entry: Entry) -> dict[str, Any]:
    return {
        "settings": [[s.lr, s.momentum, s.dampening, s.weight_decay, s.maximize] for s in entry.settings],
        "records": [
            {
                "momentum": [r.momentum.numerator, r.momentum.denominator],
                "coefficients": [[c.gradient, c.decay, c.lr] for c in r.coefficients],
                "active": list(r.active),
                "bound": r.bound,
                "spill_bits": list(r.spill_bits),
                "planes": r.planes,
                "hash_before": r.hash_before,
            }
            for r in entry.records
        ],
    }


def unpack(
    state_dict: dict[str, Any],
    state_bits: int,
    groups: list[dict[str, Any]],
    name_of: Callable[[int, int], str],
) -> tuple[int, list[Part], list[Entry]]:
    """New parts and entries on the parameters of ``groups``; tensors are copied.

    Raises:
        ValueError: if the state is not one of this optimizer, or damaged.
    """
    if not isinstance(state_dict, dict) or "param_groups" not in state_dict or not isinstance(state_dict.get(KEY), dict):
        raise ValueError(
            f"state_dict: expected one from ReversibleSGD.state_dict(), with the keys 'param_groups' and '{KEY}', got "
            f"{sorted(map(str, state_dict)) if isinstance(state_dict, dict) else type(state_dict).__name__}. "
            "The state of another optimizer holds no reversible state: start a new ReversibleSGD from the weights"
        )
    saved = state_dict[KEY]
    if saved.get("version") != _VERSION:
        raise ValueError(f"state_dict: expected format version {_VERSION}, got {saved.get('version')}")
    packed = {key: value for key, value in saved.items() if key != "digest"}
    if saved.get("digest") != _digest(packed):
        raise ValueError("state_dict: damaged, its content does not match its digest. Load an intact copy")
    if saved["state_bits"] != state_bits:
        raise ValueError(
            f"state_dict: was saved with state_bits={saved['state_bits']}, but this optimizer has state_bits={state_bits}. "
            "Construct it with the same state_bits"
        )
    ours, theirs = [len(g["params"]) for g in groups], [len(g["params"]) for g in state_dict["param_groups"]]
    if ours != theirs:
        raise ValueError(
            f"state_dict: was saved with {theirs} parameters per group, but this optimizer has {ours}. Construct it with the "
            "same parameters in the same groups"
        )
    for ours_, theirs_ in zip(groups, state_dict["param_groups"], strict=True):
        merged = {**ours_, **theirs_}
        check_unsupported(merged)
        Settings.read(merged).fraction(state_bits)
    parts = [_unpack_part(part, state_bits, groups, name_of) for part in saved["parts"]]
    entries = [_unpack_entry(entry) for entry in saved["entries"]]
    return saved["steps_taken"], parts, entries


def _unpack_part(
    saved: dict[str, Any], state_bits: int, groups: list[dict[str, Any]], name_of: Callable[[int, int], str]
) -> Part:
    g, members = saved["group"], tuple(saved["members"])
    weights = [groups[g]["params"][i] for i in members]
    names = [name_of(g, i) for i in members]
    sizes = [w.numel() for w in weights]
    if sizes != saved["sizes"]:
        wrong = next(i for i, (a, b) in enumerate(zip(sizes, saved["sizes"], strict=True)) if a != b)
        raise ValueError(f"state_dict: {names[wrong]} had {saved['sizes'][wrong]} elements, but has {sizes[wrong]} here")
    bucket = Bucket.__new__(Bucket)
    bucket.allocate(weights, names, state_bits)
    bucket.x.copy_(saved["x"])
    bucket.v.copy_(saved["v"])
    bucket.accumulators.copy_(saved["accumulators"])
    bucket.bound = saved["bound"]
    bucket.initial = [None if i is None else _unpack_initial(*i) for i in saved["initial"]]
    return Part(g, members, bucket, saved["fresh"], saved["steps"], saved["hash"])


def _unpack_initial(index: Tensor | None, value: Tensor) -> InitialWeights:
    return InitialWeights(None if index is None else index.clone(), value.clone())


def _unpack_entry(saved: dict[str, Any]) -> Entry:
    records = []
    for r in saved["records"]:
        records.append(
            Record(
                momentum=Fraction(*r["momentum"]),
                coefficients=tuple(Coefficients(*c) for c in r["coefficients"]),
                active=tuple(r["active"]),
                bound=r["bound"],
                spill_bits=tuple(r["spill_bits"]),
                planes=[plane.clone() for plane in r["planes"]],
                hash_before=r["hash_before"],
            )
        )
    return Entry([Settings(*s) for s in saved["settings"]], records)
