"""Parameters edited behind the optimizer's back, and mark_boundary, which accepts that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, refused, setting_gradients, take_steps, weights_of
from torch import nn

import reversible_hypergrad as rh

Edit = Callable[[nn.Module], None]


def square() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[1].weight.add_(1)  # type: ignore[union-attr, operator, index]


def replaced(model: nn.Module) -> None:
    model[1].weight.data = model[1].weight.data * 2  # type: ignore[union-attr, operator, index]


def replaced_twice(model: nn.Module) -> None:
    """The allocator may hand the second copy the address of the first."""
    replaced(model)
    replaced(model)


def transposed(model: nn.Module) -> None:
    model[1].weight.data = model[1].weight.data.t()  # type: ignore[union-attr, operator, index]


def resized(model: nn.Module) -> None:
    model[1].weight.data = torch.zeros(2, 4)  # type: ignore[union-attr, operator, index]


def grown(model: nn.Module) -> None:
    model[1].weight.data = torch.zeros(300, 4)  # type: ignore[union-attr, operator, index]


EDITS: dict[str, Edit] = {
    "in-place": in_place,
    "data-replaced": replaced,
    "data-replaced-twice": replaced_twice,
    "data-transposed": transposed,
    "resized": resized,
    "grown": grown,
    "double": lambda model: model.double() and None,
    "half": lambda model: model.half() and None,
    "load-state-dict": lambda model: model.load_state_dict(square().state_dict()) and None,
    "swapped-for-another-parameter": lambda model: None,  # in the test, on the group's list
}


def edited_optimizer(name: str) -> tuple[nn.Module, rh.ReversibleSGD, list[Any]]:
    model = square()
    optimizer = rh.ReversibleSGD(model.named_parameters(), lr=0.1)
    closures = take_steps(optimizer, 3)
    EDITS[name](model)
    if name.startswith("swapped"):
        optimizer.param_groups[0]["params"][2] = nn.Parameter(torch.zeros(4, 4))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model, optimizer, closures


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("method", ["step", "step-back"])
def test_edit_between_steps_is_refused(method: str, name: str) -> None:
    _, optimizer, closures = edited_optimizer(name)
    before = weights_of(optimizer)
    call = optimizer.step if method == "step" else lambda: optimizer.step_back(closures[-1])
    with pytest.raises(RuntimeError, match=r"parameter '.*mark_boundary"):
        call()
    assert weights_of(optimizer) == before


def copied_out_and_in(parameter: nn.Parameter, other: torch.Tensor) -> None:
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(other)
        parameter.copy_(kept)


def data_swapped_out_and_in(parameter: nn.Parameter, other: torch.Tensor) -> None:
    parameter.data, kept = other, parameter.data
    parameter.data = kept


def data_swapped_for_a_copy(parameter: nn.Parameter, other: torch.Tensor) -> None:
    parameter.data = parameter.data.clone()


def swapped_by_a_state_dict(parameter: nn.Parameter, other: torch.Tensor) -> None:
    holder = nn.Module()
    holder.weight = parameter
    kept = {"weight": parameter.detach().clone()}
    holder.load_state_dict({"weight": other})
    holder.load_state_dict(kept)


SWAPS = [copied_out_and_in, data_swapped_out_and_in, data_swapped_for_a_copy, swapped_by_a_state_dict]


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("swap", SWAPS)
def test_weights_swapped_out_and_in_again_are_no_edit(swap: Callable[..., None], state_bits: int) -> None:
    """As for an evaluation with averaged weights."""
    parameters = random_parameters((9,), (3, 5))
    optimizer = rh.ReversibleSGD(parameters, lr=0.1, state_bits=state_bits)
    start = frozen(optimizer)
    closures = []
    for i in range(4):
        closures += take_steps(optimizer, 1, first=i, scale=0.1)
        swap(parameters[1], torch.zeros(3, 5))
    for closure in reversed(closures):
        swap(parameters[0], torch.ones(9))
        optimizer.step_back(closure)
    assert frozen(optimizer) == start


@pytest.mark.parametrize("swap", SWAPS)
def test_weights_swapped_in_the_closure_of_step_back(swap: Callable[..., None]) -> None:
    parameters = random_parameters((9,), (3, 5))
    optimizer = rh.ReversibleSGD(parameters, lr=0.1)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 3)
    optimizer.rewind([lambda c=c: (swap(parameters[1], torch.zeros(3, 5)), c())[1] for c in reversed(closures)])
    assert frozen(optimizer) == start


def test_a_swap_that_leaves_one_other_bit_is_an_edit() -> None:
    parameters = random_parameters((9,), (3, 5))
    optimizer = rh.ReversibleSGD(parameters, lr=0.1)
    take_steps(optimizer, 3)
    other = parameters[1].detach().clone()
    other.view(torch.int32)[2, 3] ^= 1
    parameters[1].data = other
    with refused(optimizer, RuntimeError, "parameter 1 of group 0", "edited"):
        optimizer.step()


def test_equal_bits_in_another_order_of_memory_are_an_edit() -> None:
    """The state goes by memory, the gradient by index."""
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = rh.ReversibleSGD([weight], lr=0.0)
    weight.grad = torch.arange(9.0).view(3, 3)
    optimizer.step()
    weight.data = weight.data.t()
    for method in (optimizer.step, optimizer.state_dict):
        with pytest.raises(RuntimeError, match=r"parameter 0.*edited.*mark_boundary"):
            method()


@pytest.mark.parametrize("name", ["resized", "grown", "double", "data-transposed"])
def test_a_copy_after_an_edit_refuses_it_too(name: str) -> None:
    _, optimizer, closures = edited_optimizer(name)
    other = copy.deepcopy(optimizer)
    with pytest.raises(RuntimeError, match=r"parameter '.*mark_boundary"):
        other.step_back(closures[-1])


@pytest.mark.parametrize("name", ["resized", "grown"])
def test_saving_after_a_resize_names_the_parameter_and_the_remedy(name: str) -> None:
    _, optimizer, _ = edited_optimizer(name)
    with pytest.raises(RuntimeError, match=r"parameter '1\.weight'.*mark_boundary"):
        optimizer.state_dict()


@pytest.mark.parametrize("name", ["in-place", "data-replaced", "data-transposed", "resized", "grown", "double"])
def test_mark_boundary_accepts_the_edit(name: str) -> None:
    """Afterwards training goes on, can be undone to the boundary, and no further."""
    _, optimizer, closures = edited_optimizer(name)
    before = weights_of(optimizer)
    optimizer.mark_boundary()
    assert weights_of(optimizer) == before
    at_boundary = frozen(optimizer)
    with refused(optimizer, rh.ReversalError, "mark_boundary", "no step to undo"):
        optimizer.step_back(closures[-1])
    more = take_steps(optimizer, 4)
    optimizer.rewind(reversed(more))
    assert frozen(optimizer) == at_boundary
    with refused(optimizer, rh.ReversalError, "mark_boundary", "no step to undo"):
        optimizer.step_back(closures[-1])


def test_mark_boundary_keeps_the_velocity_and_frees_the_buffer() -> None:
    (ours,), (theirs,) = random_parameters((5,)), random_parameters((5,))
    theirs.data = theirs.data.double()
    optimizers = [rh.ReversibleSGD([ours], lr=0.1, dampening=0.5), torch.optim.SGD([theirs], lr=0.1, momentum=0.9, dampening=0.5)]
    for step in range(10):
        if step == 5:
            for p in (ours, theirs):
                with torch.no_grad():
                    p.mul_(2)
            optimizers[0].mark_boundary()  # type: ignore[attr-defined]
            assert optimizers[0].memory()["trajectory_bytes"] == 0  # type: ignore[attr-defined]
        (gradient,) = random_gradients([ours], step)
        ours.grad, theirs.grad = gradient, gradient.double()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_mark_boundary_refuses_weights_that_are_not_finite(value: float) -> None:
    model = square()
    optimizer = rh.ReversibleSGD(model.named_parameters(), lr=0.1)
    take_steps(optimizer, 2)
    with torch.no_grad():
        model[1].bias[2] = value  # type: ignore[index]
    with refused(optimizer, OverflowError, "'1.bias'", "finite"):
        optimizer.mark_boundary()


@pytest.mark.parametrize("name", ["in-place", "data-replaced", "data-transposed", "double", "half", "load-state-dict"])
def test_edit_before_the_first_step_is_the_new_start(name: str) -> None:
    model = square()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1)
    EDITS[name](model)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 3)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


def test_edit_after_a_full_rewind_is_the_new_start() -> None:
    model = square()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1)
    for edit in (in_place, replaced, transposed):
        optimizer.rewind(reversed(take_steps(optimizer, 3)))
        edit(model)
        start = frozen(optimizer)
        closures = take_steps(optimizer, 3, first=50)
        optimizer.rewind(reversed(closures))
        assert frozen(optimizer) == start


def test_parameter_without_state_may_be_edited_while_others_train() -> None:
    first, second = random_parameters((3,), (4,))
    optimizer = rh.ReversibleSGD([first, second], lr=0.1)
    only_first = setting_gradients([first, second], [torch.ones(3), None])
    optimizer.step(only_first)
    with torch.no_grad():
        second.fill_(0.25)
    both = setting_gradients([first, second], [torch.ones(3), torch.ones(4)])
    optimizer.step(both)
    optimizer.step_back(both)
    assert torch.equal(second, torch.full((4,), 0.25))
    with torch.no_grad():
        second.fill_(0.5)  # back at its start, although the first is not
    optimizer.step_back(only_first)


def test_removed_group_is_noticed() -> None:
    first, second = random_parameters((3,), (4,))
    optimizer = rh.ReversibleSGD([{"params": [first]}, {"params": [second]}], lr=0.1)
    closures = take_steps(optimizer, 2)
    weights = [first.detach().clone(), second.detach().clone()]
    removed = optimizer.param_groups.pop()
    with pytest.raises((RuntimeError, ValueError), match="group"):
        optimizer.step()
    assert torch.equal(first, weights[0])
    assert torch.equal(second, weights[1])
    optimizer.param_groups.append(removed)
    optimizer.rewind(reversed(closures))
