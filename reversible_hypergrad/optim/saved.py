"""The reversible state as one dictionary of tensors and numbers per parameter, and back, checked."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.optim.history import History, here, name_of
from reversible_hypergrad.optim.packing import NUMBERS, TENSORS, pack_part, unpack_part
from reversible_hypergrad.optim.settings import Setting, plain
from reversible_hypergrad.replay.fingerprint import Fingerprint
from reversible_hypergrad.reversible.runs import Runs
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.rules.base import Rule

__all__ = ["by_position", "names", "pack", "unpack"]

FORMAT_VERSION = 6

Packed = dict[str, Any]  # of one parameter: tensors and integers by name

_OF_ALL = ("format_version", "state_bits", "steps_taken", "entries", "size")


def _tensors(rule: Rule) -> dict[str, torch.dtype]:
    integers = dict.fromkeys(("x", *(f"state_{name}" for name in rule.states)), torch.int64)
    of_start = {"initial_index": torch.int64, "initial_value": torch.float32}
    return {**integers, **of_start, **TENSORS, "settings": torch.float64, "settings_counts": torch.int64}


def names(rule: Rule) -> tuple[str, ...]:
    """Of every parameter, with and without state: torch's distributed checkpoints load by the names that the optimizer has."""
    return (*_OF_ALL, *NUMBERS, *_tensors(rule), "group_digest", "environment", "digest")


def pack(history: History, groups: Sequence[dict[str, Any]], known: Sequence[Setting]) -> dict[Tensor, Packed]:
    """By parameter. Every value is a tensor on its device or an integer, so that it can be flattened; the number of values does
    not depend on the number of steps.

    Args:
        history: what is packed.
        groups: of the optimizer.
        known: the settings that a step reads from a group.
    """
    packed: dict[Tensor, Packed] = {}
    for g, group in enumerate(groups):
        for i, parameter in enumerate(group["params"]):
            packed[parameter] = {
                "format_version": FORMAT_VERSION,
                "state_bits": history.state_bits,
                "steps_taken": history.steps_taken,
                "entries": history.steps,
                "size": parameter.numel(),
                **dict.fromkeys(NUMBERS, 0),
                "part": -1,
                "fresh": 1,
                **{name: torch.empty(0, dtype=dtype, device=parameter.device) for name, dtype in _tensors(history.rule).items()},
                "group_digest": _group_digest(group, known).to(parameter.device),
            }
            if i == 0 and g < len(history.settings):
                rows, counts = history.settings[g].rows, history.settings[g].counts
                packed[parameter]["settings"] = torch.from_numpy(rows).to(parameter.device)
                packed[parameter]["settings_counts"] = torch.from_numpy(counts).to(parameter.device)
    for number, part in enumerate(history.parts):
        for i, own in zip(part.members, pack_part(part, number), strict=True):
            packed[groups[part.group]["params"][i]].update(own)
    environment = _written(history.environment or here(groups))
    for parameter, entry in packed.items():
        entry["environment"] = environment.to(parameter.device)
        entry["digest"] = _digest(entry).to(parameter.device)
    return packed


def _written(environment: Fingerprint) -> Tensor:
    """As text in bytes, since there is nothing but tensors and integers in a state."""
    return torch.tensor(list(json.dumps(dict(environment)).encode()), dtype=torch.uint8)


def _read(written: Tensor) -> Fingerprint:
    return Fingerprint(json.loads(bytes(written.tolist())))


def _warn_elsewhere(environment: Fingerprint, groups: Sequence[dict[str, Any]]) -> None:
    changed = environment.difference(here(groups))
    if changed is not None:
        warnings.warn(
            f"state_dict: its steps were taken in another environment, where gradients may have other last bits: {changed}. It "
            "can be trained on; if undoing those steps fails, that is why, and they can be undone where they were taken",
            RuntimeWarning,
            stacklevel=2,
        )


def _digest(packed: Packed) -> Tensor:
    """SHA-256 over every name, number and bit, as 32 bytes."""
    sha = hashlib.sha256()
    for name in sorted(packed):
        value = packed[name]
        if name == "digest":
            continue
        if isinstance(value, Tensor):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data if value.numel() else b"")
        else:
            sha.update(f"{name} {value!r};".encode())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)


def _group_digest(group: dict[str, Any], known: Sequence[Setting]) -> Tensor:
    """SHA-256 over the group's present settings, whatever they are, as 32 bytes."""
    written = repr([(setting.name, plain(setting.found(group))) for setting in known])
    return torch.tensor(list(hashlib.sha256(written.encode()).digest()), dtype=torch.uint8)


def unpack(
    state_dict: dict[str, Any], rule: Rule, state_bits: int, groups: Sequence[dict[str, Any]], known: Sequence[Setting]
) -> History:
    """New parts on the parameters of ``groups``; tensors are copied.

    Args:
        state_dict: as torch's; its groups' settings are such that a step could be taken.
        rule: of the optimizer.
        state_bits: of its integers.
        groups: its own.
        known: the settings that a step reads from a group.

    Raises:
        ValueError: if the state is not one of such an optimizer, or damaged.
    """
    found = by_position(state_dict, groups)
    digests = [_group_digest({**ours, **own}, known) for ours, own in zip(groups, state_dict["param_groups"], strict=True)]
    packed: dict[tuple[int, int], Packed] = {}
    for (g, i), entry in found.items():
        # A distributed checkpoint leaves out parameters that are not trained.
        if entry or groups[g]["params"][i].requires_grad:
            packed[g, i] = _checked(entry, groups[g]["params"][i], name_of(groups, g, i), rule, state_bits)
            if not torch.equal(packed[g, i]["group_digest"].cpu(), digests[g]):
                raise ValueError(
                    f"state_dict: the settings of param_groups[{g}] are not those that it was saved with. Load it as it was "
                    "saved; then change optimizer.param_groups"
                )
    history = History(rule, state_bits, [setting.name for setting in known])
    history.waiting = [list(range(len(group["params"]))) for group in groups]
    if not packed:
        return history
    first = next(iter(packed.values()))
    if any(entry[name] != first[name] for entry in packed.values() for name in ("steps_taken", "entries")):
        raise ValueError("state_dict: its parameters were saved after different steps. Load a state that was saved as a whole")
    history.steps, history.steps_taken = first["entries"], first["steps_taken"]
    history.settings = _settings(packed, len(groups), len(known))
    for g, positions in _members(packed):
        state = State.__new__(State)
        weights = [groups[g]["params"][i] for i in positions]
        state.allocate(weights, [name_of(groups, g, i) for i in positions], rule, state_bits)
        history.parts.append(unpack_part([packed[g, i] for i in positions], g, positions, state))
        history.waiting[g] = [i for i in history.waiting[g] if i not in positions]
    environment = _read(first["environment"])
    if history.steps:
        _warn_elsewhere(environment, groups)
    history.environment = environment if history.parts else None
    return history


def _settings(packed: dict[tuple[int, int], Packed], groups: int, width: int) -> list[Runs]:
    """Per group; of one that was added after the last step there are none."""
    found = []
    for g in range(groups):
        runs = Runs(width, np.float64)
        own = packed.get((g, 0))
        if own is not None and own["settings"].numel():
            runs.load(own["settings"].cpu().numpy(), own["settings_counts"].cpu().numpy())
        found.append(runs)
    while found and not len(found[-1]):
        found.pop()
    return found


def by_position(state_dict: Any, groups: Sequence[dict[str, Any]]) -> dict[tuple[int, int], Any]:
    """The saved entry, or None, of the parameter at each (group, position)."""
    if isinstance(state_dict, dict) and isinstance(state_dict.get("reversible"), dict):
        raise _of_version(state_dict["reversible"].get("version"))
    if not (isinstance(state_dict, dict) and isinstance(state_dict.get("state"), dict) and "param_groups" in state_dict):
        raise ValueError(
            "state_dict: expected one from state_dict() of a reversible optimizer, with the keys 'state' and 'param_groups', got "
            f"{sorted(map(str, state_dict)) if isinstance(state_dict, dict) else type(state_dict).__name__}. "
            "The state of another optimizer holds no reversible state: start a new optimizer from the weights"
        )
    ours, theirs = [len(g["params"]) for g in groups], [len(g["params"]) for g in state_dict["param_groups"]]
    if ours != theirs:
        raise ValueError(
            f"state_dict: was saved with {theirs} parameters per group, but this optimizer has {ours}. Construct it with the "
            "same parameters in the same groups"
        )
    keys = {(g, i): key for g, group in enumerate(state_dict["param_groups"]) for i, key in enumerate(group["params"])}
    return {position: state_dict["state"].get(key) for position, key in keys.items()}


def _of_version(version: Any) -> ValueError:
    return ValueError(
        f"state_dict: expected format version {FORMAT_VERSION}, got version {version}, of another release. Load it with that "
        "release, or start a new optimizer from the weights"
    )


def _checked(entry: Any, parameter: Tensor, name: str, rule: Rule, state_bits: int) -> Packed:
    if not isinstance(entry, dict) or "format_version" not in entry:
        raise ValueError(
            f"state_dict: {name} has no reversible state in it, but {list(entry) if isinstance(entry, dict) else 'nothing'}. The "
            "state of another optimizer holds none: start a new optimizer from the weights"
        )
    if entry["format_version"] != FORMAT_VERSION:
        raise _of_version(entry["format_version"])
    digest = entry.get("digest")
    if set(entry) != set(names(rule)) or not isinstance(digest, Tensor) or not torch.equal(digest.cpu(), _digest(entry)):
        raise ValueError(f"state_dict: damaged, the content of {name} does not match its digest. Load an intact copy")
    if entry["state_bits"] != state_bits:
        raise ValueError(
            f"state_dict: was saved with state_bits={entry['state_bits']}, but this optimizer has state_bits={state_bits}. "
            "Construct it with the same state_bits"
        )
    if entry["size"] != parameter.numel():
        raise ValueError(f"state_dict: {name} had {entry['size']} elements, but has {parameter.numel()} here")
    return entry


def _members(packed: dict[tuple[int, int], Packed]) -> list[tuple[int, tuple[int, ...]]]:
    """Group and positions of the members of each part."""
    parts: dict[int, list[tuple[int, int, int]]] = {}
    for (g, i), entry in packed.items():
        if entry["part"] >= 0:
            parts.setdefault(entry["part"], []).append((entry["place"], g, i))
    found = [sorted(members) for _, members in sorted(parts.items())]
    if sorted(parts) != list(range(len(parts))) or any([m for m, _, _ in part] != list(range(len(part))) for part in found):
        raise ValueError("state_dict: parameters of it are missing. Load a state that was saved as a whole")
    return [(part[0][1], tuple(i for _, _, i in part)) for part in found]
