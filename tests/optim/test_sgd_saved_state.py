"""state_dict, pickle and deepcopy keep every bit; damaged and foreign states are refused."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_problems import (
    digits_closure,
    frozen,
    mlp,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
)
from torch import Tensor

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])

CONTINUE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from optim_problems import digits_closure, frozen, mlp
import reversible_hypergrad as rh
torch.set_num_threads(1)
saved = torch.load(sys.argv[2], weights_only=True)
model = mlp(seed=5)
optimizer = rh.ReversibleSGD(model.parameters(), lr=9.0, momentum=0.3, state_bits=int(sys.argv[3]))
if sys.argv[4] == "weights-first":
    model.load_state_dict(saved["model"])
optimizer.load_state_dict(saved["optimizer"])
if sys.argv[4] == "optimizer-first":
    model.load_state_dict(saved["model"])
for step in range(20, 40):
    optimizer.step(digits_closure(model, optimizer, step))
end = [p.detach().clone() for p in model.parameters()]
optimizer.rewind(digits_closure(model, optimizer, step) for step in reversed(range(40)))
torch.save({"end": end, "start": [p.detach() for p in model.parameters()], "lr": optimizer.param_groups[0]["lr"]}, sys.argv[2])
"""


@pytest.mark.parametrize("order", ["weights-first", "optimizer-first"])
@by_width
def test_a_new_process_steps_on_and_rewinds_to_the_start(
    tmp_path: Path, order: str, state_bits: int, set_num_threads: Callable[[int], None]
) -> None:
    set_num_threads(1)
    model = mlp()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1, momentum=0.8731, state_bits=state_bits)
    start = [p.detach().clone() for p in model.parameters()]
    for step in range(20):
        optimizer.step(digits_closure(model, optimizer, step))
    file = tmp_path / "run.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    command = [sys.executable, "-c", CONTINUE, str(Path(__file__).parents[1]), str(file), str(state_bits), order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = torch.load(file, weights_only=True)
    for step in range(20, 40):
        optimizer.step(digits_closure(model, optimizer, step))
    assert all(map(torch.equal, result["end"], model.parameters()))
    assert all(map(torch.equal, result["start"], start))
    assert result["lr"] == 0.1


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_train_and_rewind_independently(way: Callable[[Any], Any]) -> None:
    model = mlp()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=torch.tensor(0.1))
    start = frozen(optimizer)
    for step in range(5):
        optimizer.step(digits_closure(model, optimizer, step))
    before = frozen(optimizer)
    other_model, other = way((model, optimizer))
    assert frozen(other) == before
    for step in range(5, 10):
        other.step(digits_closure(other_model, other, step))
    assert frozen(optimizer) == before
    other.rewind(digits_closure(other_model, other, step) for step in reversed(range(10)))
    assert frozen(other) == start
    optimizer.rewind(digits_closure(model, optimizer, step) for step in reversed(range(5)))
    assert frozen(optimizer) == start


def stepped(state_bits: int = 64, shapes: Any = ((9,), (3, 5)), **settings: Any) -> tuple[rh.ReversibleSGD, list[Any]]:
    settings = {"lr": 0.1, "momentum": 0.1, **settings}
    optimizer = rh.ReversibleSGD(random_parameters(*shapes), state_bits=state_bits, **settings)
    return optimizer, take_steps(optimizer, 12, scale=0.1)


def saved_state(optimizer: rh.ReversibleSGD) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_loaded_state_is_checked_against_the_weights() -> None:
    optimizer, _ = stepped()
    other = rh.ReversibleSGD(random_parameters((9,), (3, 5), seed=7), lr=0.1)
    other.load_state_dict(saved_state(optimizer))
    with refused(other, RuntimeError, "parameter 0 of group 0", "edited"):
        take_steps(other, 1)


def test_loading_copies() -> None:
    optimizer, closures = stepped()
    state = saved_state(optimizer)
    optimizer.load_state_dict(state)
    optimizer.rewind(reversed(closures))
    optimizer2, closures = stepped()
    optimizer2.load_state_dict(state)  # the first must not have written into it
    optimizer2.rewind(reversed(closures))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field, list item and tensor of a state; the last step stands for all steps."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in [(*path, k), *paths(v, (*path, k))]]
    if isinstance(value, list) and value and path[-1:] in (("parts",), ("entries",), ("records",), ("planes",)):
        return paths(value[-1], (*path, -1)) + ([(*path, -1)] if isinstance(value[-1], Tensor) else [])
    return []


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


def attack(damage: Callable[[Any, Any], Any], path: tuple[Any, ...], state_bits: int) -> None:
    """A damaged state is refused when loaded, or at the latest when it would give wrong weights, velocities or settings."""
    optimizer, _ = stepped(state_bits)
    (clean, _), start = stepped(state_bits), frozen(rh.ReversibleSGD(random_parameters((9,), (3, 5)), 0.1, 0.1))
    state = saved_state(optimizer)
    damage(at(state["reversible"], path[:-1]), path[-1])
    before = frozen(clean)
    refusal = None
    try:
        clean.load_state_dict(state)
    except (ValueError, TypeError) as error:
        refusal = error
    if refusal is not None:
        assert "state_dict" in str(refusal), f"not clear: {refusal!r}"
        assert frozen(clean) == before
        return
    parameters = [p for g in clean.param_groups for p in g["params"]]
    closures = [setting_gradients(parameters, random_gradients(parameters, i, 0.1)) for i in range(12)]
    try:
        clean.rewind(reversed(closures))
    except (rh.ReversalError, ValueError):
        return
    assert frozen(clean) == start, "the damage was never found, and the state after rewinding differs"


def remove(parent: Any, key: Any) -> None:
    del parent[key]


def misplace(parent: Any, key: Any) -> None:
    parent[key] = "nonsense" if not isinstance(parent[key], str) else 3


def shorten(parent: Any, key: Any) -> None:
    parent[key] = parent[key][:-1]


def flip(parent: Any, key: Any) -> None:
    value = parent[key]
    if isinstance(value, Tensor):
        value.view(-1)[0] ^= 1
    else:
        parent[key] = not value if isinstance(value, bool) else value ^ 1


def can_shorten(value: Any) -> bool:
    return isinstance(value, Tensor | list) and len(value) > 0


def can_flip(value: Any) -> bool:
    return value.numel() > 0 if isinstance(value, Tensor) else isinstance(value, int)


def damages() -> Iterator[Any]:
    """Every damage to every field that it applies to."""
    state = saved_state(stepped()[0])["reversible"]
    applies: dict[Callable[[Any, Any], None], Callable[[Any], bool]] = {
        remove: lambda _: True,
        misplace: lambda _: True,
        shorten: can_shorten,
        flip: can_flip,
    }
    for damage, fits in applies.items():
        for path in paths(state):
            if fits(at(state, path)):
                yield pytest.param(path, damage, id="-".join([damage.__name__, ".".join(map(str, path))]))


@pytest.mark.parametrize(("path", "damage"), list(damages()))
def test_damaged(path: tuple[Any, ...], damage: Callable[[Any, Any], Any]) -> None:
    attack(damage, path, 64)


@by_width
@pytest.mark.parametrize("field", ["x", "v", "accumulators"])
def test_one_flipped_bit_is_found_when_loading(field: str, state_bits: int) -> None:
    optimizer, _ = stepped(state_bits)
    state = saved_state(optimizer)
    state["reversible"]["parts"][0][field][1] ^= 4
    with refused(optimizer, ValueError, "state_dict", "damaged", "intact"):
        optimizer.load_state_dict(state)


def test_foreign_state() -> None:
    optimizer, closures = stepped()
    other = torch.optim.SGD(random_parameters((9,), (3, 5)), lr=0.1, momentum=0.9)
    for bad in (other.state_dict(), {}, {"reversible": {}}, {"reversible": None, "param_groups": []}):
        with refused(optimizer, ValueError, "state_dict"):
            optimizer.load_state_dict(bad)
    optimizer.rewind(reversed(closures))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "state-bits": ({"state_bits": 32}, "state_bits=32"),
    "fewer-parameters": ({"shapes": ((9,),)}, "[1]"),
    "other-sizes": ({"shapes": ((9,), (3, 6))}, "15"),
}


@pytest.mark.parametrize(("settings", "word"), OTHERS.values(), ids=OTHERS.keys())
def test_state_of_another_configuration(settings: dict[str, Any], word: str) -> None:
    optimizer, closures = stepped()
    other, _ = stepped(**settings)
    with refused(optimizer, ValueError, "state_dict", word):
        optimizer.load_state_dict(saved_state(other))
    optimizer.rewind(reversed(closures))


def test_damaged_settings_of_a_group() -> None:
    optimizer, closures = stepped()
    for damage in ({"lr": -1.0}, {"momentum": 0.0}, {"weight_decay": float("nan")}, {"nesterov": True}):
        state = saved_state(optimizer)
        state["param_groups"][0].update(damage)
        name = next(iter(damage))
        with refused(optimizer, ValueError, {"lr": "learning rate"}.get(name, name)):
            optimizer.load_state_dict(state)
    optimizer.rewind(reversed(closures))
