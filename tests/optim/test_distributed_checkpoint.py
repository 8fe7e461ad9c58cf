"""torch.distributed.checkpoint, in one process: it sees the whole state, takes no step, and restores every bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim_problems import digits_closure, frozen, mlp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import reversible_hypergrad as rh

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is.*:UserWarning")
by_width = pytest.mark.parametrize("state_bits", [64, 32])

OPTIONS = {
    "plain": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
    "full-on-the-cpu": StateDictOptions(full_state_dict=True, cpu_offload=True),
}
by_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def new(state_bits: int = 64, seed: int = 0, **settings: Any) -> tuple[nn.Module, rh.ReversibleSGD]:
    model = mlp(seed)
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 0.05}]  # type: ignore[index]
    return model, rh.ReversibleSGD(groups, lr=0.1, momentum=0.8731, state_bits=state_bits, **settings)


def train(model: nn.Module, optimizer: rh.ReversibleSGD, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["weight_decay"] = 1e-4 * step
        optimizer.step(digits_closure(model, optimizer, step))


def rewind(model: nn.Module, optimizer: rh.ReversibleSGD, steps: int) -> None:
    optimizer.rewind(digits_closure(model, optimizer, step) for step in reversed(range(steps)))


@by_options
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_reading_the_state_takes_no_step(steps: int, options: StateDictOptions) -> None:
    """torch takes one, with zero gradients, of an optimizer that has no state yet."""
    model, optimizer = new()
    train(model, optimizer, range(steps))
    optimizer.zero_grad()
    before = frozen(optimizer)
    get_optimizer_state_dict(model, optimizer, options=options)
    assert frozen(optimizer) == before
    rewind(model, optimizer, steps)


@by_options
@by_width
def test_a_new_optimizer_goes_on_and_rewinds(state_bits: int, options: StateDictOptions) -> None:
    model, optimizer = new(state_bits)
    start = frozen(optimizer)
    train(model, optimizer, range(10))
    optimizer.zero_grad()
    model_state, state = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    train(model, optimizer, range(10, 20))
    end = frozen(optimizer)

    model, optimizer = new(state_bits, seed=5)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=state, options=options)
    train(model, optimizer, range(10, 20))
    assert frozen(optimizer) == end
    rewind(model, optimizer, 20)
    assert frozen(optimizer) == start


def template(path: Path) -> dict[str, Tensor | None]:
    saved = FileSystemReader(path).read_metadata().state_dict_metadata
    return {k: torch.empty(m.size, dtype=m.properties.dtype) if hasattr(m, "size") else None for k, m in saved.items()}


@by_width
def test_from_a_file_to_a_new_optimizer(tmp_path: Path, state_bits: int) -> None:
    model, optimizer = new(state_bits)
    start = frozen(optimizer)
    train(model, optimizer, range(10))
    options = OPTIONS["flat"]
    dcp.save(get_optimizer_state_dict(model, optimizer, options=options), checkpoint_id=tmp_path / "optimizer", no_dist=True)
    weights = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(10, 20))
    end = frozen(optimizer)

    model, optimizer = new(state_bits, seed=5)
    model.load_state_dict(weights)
    state = template(tmp_path / "optimizer")
    dcp.load(state, checkpoint_id=tmp_path / "optimizer", no_dist=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    train(model, optimizer, range(10, 20))
    assert frozen(optimizer) == end
    rewind(model, optimizer, 20)
    assert frozen(optimizer) == start


def test_from_a_file_back_to_the_same_step(tmp_path: Path) -> None:
    """The usual way, in place into the state of an optimizer that has taken as many steps."""
    model, optimizer = new()
    start = frozen(optimizer)
    train(model, optimizer, range(10))
    before = frozen(optimizer)
    optimizer.zero_grad()
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path, no_dist=True)

    other_model, other = new(seed=5)
    train(other_model, other, range(10))
    state = {"optimizer": get_optimizer_state_dict(other_model, other)}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other_model, other, state["optimizer"])
    other_model.load_state_dict(model.state_dict())
    assert frozen(other) == before
    rewind(other_model, other, 10)
    assert frozen(other) == start


def test_a_parameter_that_is_not_trained_is_left_out() -> None:
    model, optimizer = new()
    model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    start = frozen(optimizer)
    train(model, optimizer, range(5))
    optimizer.zero_grad()
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=OPTIONS["flat"]))
    set_optimizer_state_dict(model, optimizer, state, options=OPTIONS["flat"])
    rewind(model, optimizer, 5)
    assert frozen(optimizer) == start
