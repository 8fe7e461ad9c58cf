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
    plain,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
)
from torch import Tensor, nn

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
    other = rh.ReversibleSGD(random_parameters((9,), (3, 5), seed=7), lr=0.1, state_bits=64)
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


Damage = Callable[[dict[str, Any], str], None]


def attack(damage: Damage, name: str, state_bits: int) -> None:
    """A damaged state is refused when loaded, and nothing changes."""
    optimizer, _ = stepped(state_bits)
    clean, closures = stepped(state_bits)
    state = saved_state(optimizer)
    damage(state["state"][0], name)
    with refused(clean, ValueError, "state_dict"):
        clean.load_state_dict(state)
    clean.rewind(reversed(closures))


def remove(entry: dict[str, Any], name: str) -> None:
    del entry[name]


def misplace(entry: dict[str, Any], name: str) -> None:
    entry[name] = "nonsense"


def shorten(entry: dict[str, Any], name: str) -> None:
    entry[name] = entry[name][:-1]


def flip(entry: dict[str, Any], name: str) -> None:
    if isinstance(entry[name], Tensor):
        entry[name].view(torch.uint8).view(-1)[0] ^= 1
    else:
        entry[name] ^= 1


def damages() -> Iterator[Any]:
    """Every damage to every entry that it applies to."""
    entry = saved_state(stepped()[0])["state"][0]
    for name, value in entry.items():
        has_elements = isinstance(value, Tensor) and value.numel() > 0
        for damage in (
            remove,
            misplace,
            *([shorten] if has_elements else []),
            *([flip] if has_elements or isinstance(value, int) else []),
        ):
            yield pytest.param(name, damage, id=f"{damage.__name__}-{name}")


@pytest.mark.parametrize(("name", "damage"), list(damages()))
@by_width
def test_damaged(name: str, damage: Damage, state_bits: int) -> None:
    attack(damage, name, state_bits)


def test_a_lost_parameter_is_named() -> None:
    optimizer, _ = stepped()
    state = saved_state(optimizer)
    del state["state"][1]
    with refused(optimizer, ValueError, "state_dict", "parameter 1 of group 0"):
        optimizer.load_state_dict(state)


def test_entries_of_different_times_are_refused() -> None:
    optimizer, _ = stepped()
    earlier = saved_state(optimizer)
    take_steps(optimizer, 1)
    later = saved_state(optimizer)
    later["state"][1] = earlier["state"][1]
    with refused(optimizer, ValueError, "state_dict", "different steps", "whole"):
        optimizer.load_state_dict(later)


def test_the_number_of_entries_does_not_grow_with_the_steps() -> None:
    optimizer, _ = stepped()
    before = saved_state(optimizer)
    take_steps(optimizer, 30)
    after = saved_state(optimizer)
    assert {i: entry.keys() for i, entry in after["state"].items()} == {i: entry.keys() for i, entry in before["state"].items()}
    assert after["param_groups"] == before["param_groups"]


def test_a_parameter_s_entry_is_its_own() -> None:
    """What it holds does not depend on the parameters beside it, but for its place among them, the hash of all, and the log of
    all, which the first one has."""
    weights = random_parameters((9,), (3, 7), (600,))
    together = rh.ReversibleSGD(weights, lr=0.1, momentum=0.1)
    apart = [rh.ReversibleSGD([nn.Parameter(w.detach().clone())], lr=0.1, momentum=0.1) for w in weights]
    for step in range(12):
        gradients = random_gradients(weights, step, scale=1e3 if step == 7 else 1.0)
        gradients[1] = gradients[1] if step != 4 else None
        together.step(setting_gradients(weights, gradients))
        for optimizer, gradient in zip(apart, gradients, strict=True):
            optimizer.step(setting_gradients(optimizer.param_groups[0]["params"], [gradient]))
    entries = together.state_dict()["state"]
    assert [entry["log_planes"].numel() > 0 for entry in entries.values()] == [True, False, False]
    for i, optimizer in enumerate(apart):
        (entry,) = optimizer.state_dict()["state"].values()
        of_all = [name for name in entry if name.startswith(("log_", "settings"))]
        own = {name: value for name, value in plain(entry).items() if name not in ("place", "hash", "digest", *of_all)}
        assert {name: value for name, value in plain(entries[i]).items() if name in own} == own


def test_hooks_see_the_whole_state() -> None:
    optimizer, closures = stepped()
    saved: list[Any] = []
    optimizer.register_state_dict_post_hook(lambda _, state: saved.append(state))
    state = optimizer.state_dict()
    assert saved[0]["state"].keys() == {0, 1}

    def undo_wrapping(_: Any, wrapped: dict[str, Any]) -> dict[str, Any]:
        return wrapped["wrapped"]

    other = rh.ReversibleSGD(random_parameters((9,), (3, 5)), lr=0.1, state_bits=64)
    other.register_load_state_dict_pre_hook(undo_wrapping)
    steps: list[int] = []
    other.register_load_state_dict_post_hook(lambda loaded: steps.append(loaded.state_dict()["state"][0]["steps_taken"]))
    other.load_state_dict({"wrapped": state})
    assert steps == [len(closures)]


@pytest.mark.parametrize("version", [1, 5, 7])
def test_another_format_version_is_named_with_the_expected_one(version: int) -> None:
    optimizer, _ = stepped()
    state = saved_state(optimizer)
    if version == 1:
        state = {"state": {}, "param_groups": state["param_groups"], "reversible": {"version": 1}}
    else:
        state["state"][0]["format_version"] = version
    with refused(optimizer, ValueError, "state_dict", "expected format version 6", f"got version {version}"):
        optimizer.load_state_dict(state)


def test_foreign_state() -> None:
    optimizer, closures = stepped()
    other = torch.optim.SGD(random_parameters((9,), (3, 5)), lr=0.1, momentum=0.9)
    for bad in (other.state_dict(), {}, {"reversible": {}}, {"state": {}, "param_groups": []}):
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


EDITS = {"lr": 0.2, "momentum": 0.11, "dampening": 0.5, "weight_decay": 1e-3, "maximize": True}


@pytest.mark.parametrize("setting", EDITS)
@pytest.mark.parametrize("group", [0, 1])
def test_settings_edited_in_a_saved_state_are_refused(setting: str, group: int) -> None:
    """Even of the group that begins only later, whose parameters have no state yet."""
    weights = random_parameters((9,), (3, 5))
    optimizer = rh.ReversibleSGD([{"params": [w]} for w in weights], lr=0.1, momentum=0.1)
    for step in range(5):
        optimizer.step(setting_gradients(weights, [random_gradients(weights, step)[0], None]))
    state = saved_state(optimizer)
    state["param_groups"][group][setting] = EDITS[setting]
    with refused(optimizer, ValueError, f"param_groups[{group}]", "then change optimizer.param_groups"):
        optimizer.load_state_dict(state)
    state["param_groups"][group][setting] = optimizer.param_groups[group][setting]
    optimizer.load_state_dict(state)


def test_edited_betas_in_a_saved_state_are_refused() -> None:
    optimizer = rh.ReversibleAdamW(random_parameters((9,)), lr=torch.tensor(0.1))
    take_steps(optimizer, 3)
    state = saved_state(optimizer)
    assert state["param_groups"][0]["betas"] == (0.9, 0.999)
    for edited in ((0.9, 0.99), (0.8, 0.999)):
        state["param_groups"][0]["betas"] = edited
        with pytest.raises(ValueError, match=r"settings of param_groups\[0\] are not those"):
            optimizer.load_state_dict(state)
    state["param_groups"][0]["betas"] = [0.9, 0.999]  # as it comes out of JSON
    optimizer.load_state_dict(state)


def test_a_state_with_settings_that_no_step_allows_is_still_saved() -> None:
    """Of a group that somebody spoilt since the last step: the error comes with the step, or where the state is loaded."""
    optimizer, _ = stepped()
    optimizer.param_groups[0]["momentum"] = "high"
    state = saved_state(optimizer)
    with pytest.raises(TypeError, match="momentum"):
        optimizer.load_state_dict(state)
