"""What users of torch.optim.Optimizer rely on: hooks, zero_grad, foreach and fused, group edits, shapes, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import bits, frozen, random_gradients, random_parameters, setting_gradients, take_steps
from torch import nn

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])


@pytest.mark.parametrize("option", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
def test_foreach_and_fused_change_nothing(option: dict[str, bool]) -> None:
    ends = []
    for settings in ({}, option):
        optimizer = rh.ReversibleSGD(random_parameters((9,), (3, 5)), lr=0.1, **settings)
        take_steps(optimizer, 5)
        ends.append(frozen(optimizer)["weights"])
    assert ends[0] == ends[1]


def test_step_hooks_run_once_per_step_and_not_on_the_way_back() -> None:
    optimizer = rh.ReversibleSGD(random_parameters((9,)), lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    closures = take_steps(optimizer, 2)
    optimizer.rewind(reversed(closures))
    assert calls == ["pre", "post"] * 2


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    parameters = random_parameters((9,), (3,))
    optimizer = rh.ReversibleSGD(parameters, lr=0.1)
    take_steps(optimizer, 1)
    optimizer.zero_grad(set_to_none=set_to_none)
    for p in parameters:
        assert p.grad is None if set_to_none else (p.grad is not None and not p.grad.any())


def test_is_an_optimizer_and_prints() -> None:
    optimizer = rh.ReversibleSGD(random_parameters((2,)), lr=0.25)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert "ReversibleSGD" in repr(optimizer)
    assert "0.25" in repr(optimizer)


def test_steps_without_any_gradient() -> None:
    parameters = random_parameters((3,))
    optimizer = rh.ReversibleSGD(parameters, lr=0.1)
    start = frozen(optimizer)
    nothing = setting_gradients(parameters, [None])
    some = setting_gradients(parameters, [torch.ones(3)])
    closures = [nothing, some, nothing, nothing, some]
    for closure in closures:
        optimizer.step(closure)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


def test_a_step_counts_as_a_change_for_autograd() -> None:
    """A backward through weights that were stepped in between must fail, as with torch.optim.SGD."""
    (weight,) = random_parameters((3,))
    optimizer = rh.ReversibleSGD([weight], lr=0.1)
    loss = weight.square().sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


SIZES = [0, 1, 2, 7, 8, 9, 129, 511, 512, 513, 4096 + 33]


@by_width
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int, state_bits: int) -> None:
    optimizer = rh.ReversibleSGD(random_parameters((size,)), lr=0.01, momentum=0.5, state_bits=state_bits)
    start = frozen(optimizer)
    optimizer.rewind(reversed(take_steps(optimizer, 60)))
    assert frozen(optimizer) == start


@by_width
def test_many_tiny_tensors_scalars_and_empty_ones(state_bits: int) -> None:
    """Each tensor moves as it does alone."""
    shapes = [(), (0,), (1,), (2, 0, 3), (7,), (3, 3)] * 50
    together, alone = random_parameters(*shapes), random_parameters(*shapes)
    optimizer = rh.ReversibleSGD(together, lr=0.01, state_bits=state_bits)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 10)
    for i, p in enumerate(alone[:12]):
        single = rh.ReversibleSGD([p], lr=0.01, state_bits=state_bits)
        for step in range(10):
            p.grad = random_gradients(together, step)[i]
            single.step()
        assert bits(p) == bits(together[i]), shapes[i]
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


@by_width
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_all_negative_and_all_positive(sign: float, state_bits: int) -> None:
    """Floor division and its remainder: negative weights and velocities throughout."""
    weight = nn.Parameter(sign * torch.linspace(1, 2, 100))
    optimizer = rh.ReversibleSGD([weight], lr=1e-3, momentum=0.8731, state_bits=state_bits)
    start = frozen(optimizer)
    closure = setting_gradients([weight], [-sign * torch.linspace(0.1, 1, 100)])
    for _ in range(300):
        optimizer.step(closure)
    optimizer.rewind([closure] * 300)
    assert frozen(optimizer) == start


@by_width
def test_one_and_two_threads_give_the_same_bits(state_bits: int, set_num_threads: Callable[[int], None]) -> None:
    shapes = ((300_000,), (513, 129), (5,))
    states: list[Any] = []
    for threads in (1, 2):
        set_num_threads(threads)
        optimizer = rh.ReversibleSGD(random_parameters(*shapes), lr=0.01, momentum=0.5, state_bits=state_bits)
        start = frozen(optimizer)
        closures = take_steps(optimizer, 12)
        states.append(frozen(optimizer))
        set_num_threads(3 - threads)  # and undone by the other number
        optimizer.rewind(reversed(closures))
        assert frozen(optimizer) == start
    assert states[0] == states[1]


def test_rewind_stops_at_the_first_error_and_keeps_what_was_undone() -> None:
    parameters = random_parameters((9,))
    optimizer = rh.ReversibleSGD(parameters, lr=0.1)
    closures = take_steps(optimizer, 2)
    after_two = frozen(optimizer)
    third = take_steps(optimizer, 1, first=7)
    with pytest.raises(rh.ReversalError):
        optimizer.rewind([third[0], closures[0], closures[0]])
    assert frozen(optimizer) == after_two


def test_groups_added_later_leave_when_rewound_past() -> None:
    first, second = random_parameters((9,), (4,))
    optimizer = rh.ReversibleSGD([first], lr=0.1)
    early = take_steps(optimizer, 3)
    optimizer.add_param_group({"params": [second], "lr": 0.5, "momentum": 0.5})
    before = frozen(optimizer)
    late = take_steps(optimizer, 3)
    optimizer.rewind(reversed(late))
    assert frozen(optimizer) == before
    second.grad = None
    alone = [lambda c=c: (c(), setattr(second, "grad", None))[0] for c in early]
    optimizer.rewind(reversed(alone))
    late = take_steps(optimizer, 2)
    optimizer.rewind(reversed(late))
