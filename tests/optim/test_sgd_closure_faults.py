"""step_back with a closure that does not replay its step: found by the hash, and everything stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import (
    Closure,
    digits_closure,
    frozen,
    mlp,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
)
from torch import Tensor, nn

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])


def trained(state_bits: int, **settings: Any) -> tuple[rh.ReversibleSGD, list[nn.Parameter], Any, list[Closure]]:
    parameters = random_parameters((9,), (3, 5), (600,))
    settings = {"lr": 0.01, "momentum": 0.9, **settings}
    optimizer = rh.ReversibleSGD([{"params": parameters[:2]}, {"params": parameters[2:]}], state_bits=state_bits, **settings)
    start = frozen(optimizer)
    return optimizer, parameters, start, take_steps(optimizer, 6, scale=0.1)


Fault = Callable[[rh.ReversibleSGD, list[nn.Parameter], Closure], None]


def no_gradient(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
    good()
    parameters[1].grad = None


def sparse(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
    good()
    parameters[1].grad = torch.zeros_like(parameters[1]).to_sparse()


def edit(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
    good()
    with torch.no_grad():
        parameters[2].mul_(1.5)


def raise_late(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
    good()
    raise KeyError("batch")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt("interrupted")


def tiny(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
    good()
    gradient = parameters[2].grad
    assert gradient is not None
    gradient[7] += 2.0**-13  # some quanta of the 32-bit velocity; less may round away, and then does no harm


def scaled(factor: float) -> Fault:
    def fault(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
        good()
        for p in parameters:
            assert p.grad is not None
            p.grad.mul_(factor)

    return fault


def not_finite(_: rh.ReversibleSGD, parameters: list[nn.Parameter], good: Closure) -> None:
    good()
    assert parameters[2].grad is not None
    parameters[2].grad[-1] = torch.nan


FAULTS: dict[str, tuple[Fault, type[BaseException], tuple[str, ...]]] = {
    "leaves-gradient-none": (no_gradient, rh.ReversalError, ("parameter 1 of group 0", "zero_grad")),
    "sparse-gradient": (sparse, RuntimeError, ("parameter 1 of group 0", "sparse", "to_dense")),
    "edits-a-weight": (edit, RuntimeError, ("parameter 0 of group 1", "edited")),
    "raises": (raise_late, KeyError, ("batch",)),
    "interrupted": (interrupt, KeyboardInterrupt, ("interrupted",)),
    "tiny": (tiny, rh.ReversalError, ("closure", "batch")),
    "half": (scaled(0.5), rh.ReversalError, ("closure", "batch")),
    "times-1e4": (scaled(1e4), rh.ReversalError, ("closure", "batch")),
    "times-1e30": (scaled(1e30), rh.ReversalError, ("closure", "batch")),
    "sign": (scaled(-1), rh.ReversalError, ("closure", "batch")),
    "zero": (scaled(0), rh.ReversalError, ("closure", "batch")),
    "nan": (not_finite, rh.ReversalError, ("closure", "batch")),
}


@by_width
@pytest.mark.parametrize("momentum", [0.9, 0.1, 1.0], ids="momentum-{}".format)
@pytest.mark.parametrize(("fault", "error", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_fault(fault: Fault, error: type[BaseException], words: tuple[str, ...], momentum: float, state_bits: int) -> None:
    optimizer, parameters, start, closures = trained(state_bits, momentum=momentum, weight_decay=0.1)
    optimizer.step_back(closures.pop())
    for _ in range(2):  # a second try with the same fault must fail alike
        with refused(optimizer, error, *words):
            optimizer.step_back(lambda: fault(optimizer, parameters, closures[-1]))
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


@by_width
def test_another_batch(state_bits: int) -> None:
    model = mlp()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1, state_bits=state_bits)
    for step in range(5):
        optimizer.step(digits_closure(model, optimizer, step))
    with refused(optimizer, rh.ReversalError, "step 5", "batch"):
        optimizer.step_back(digits_closure(model, optimizer, 3))
    optimizer.rewind(digits_closure(model, optimizer, step) for step in reversed(range(5)))


@pytest.mark.parametrize("seed", range(20))
def test_huge_wrong_gradients_never_go_unnoticed(seed: int) -> None:
    """With 32-bit state a wrong gradient of 1e4 times the size leaves the integers of velocities; it must still be undone."""
    optimizer, parameters, start, closures = trained(32, momentum=0.1)
    wrong = setting_gradients(parameters, random_gradients(parameters, seed, scale=1e3))
    with refused(optimizer, rh.ReversalError, "closure"):
        optimizer.step_back(wrong)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


NESTED: dict[str, Callable[[rh.ReversibleSGD, Closure], Any]] = {
    "step": lambda optimizer, good: optimizer.step(),
    "step-back": lambda optimizer, good: optimizer.step_back(good),
    "mark-boundary": lambda optimizer, good: optimizer.mark_boundary(),
    "load-state": lambda optimizer, good: optimizer.load_state_dict(optimizer.state_dict()),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", NESTED.values(), ids=NESTED.keys())
def test_optimizer_used_inside_the_closure_of_step_back(call: Callable[..., Any], when: str) -> None:
    """The usual cause: a training function that ends in optimizer.step() is passed as the closure."""
    optimizer, _, start, closures = trained(64)

    def closure() -> Tensor:
        if when == "before":
            call(optimizer, closures[-1])
        loss = closures[-1]()
        if when == "after":
            call(optimizer, closures[-1])
        return loss

    with refused(optimizer, RuntimeError, "closure"):
        optimizer.step_back(closure)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


def test_step_inside_the_closure_of_step() -> None:
    """Either a clear error or two ordinary steps; never a state that cannot be undone."""
    optimizer, _, start, closures = trained(64)

    def closure() -> Tensor:
        loss = closures[0]()
        optimizer.step()
        return loss

    try:
        optimizer.step(closure)
    except RuntimeError:
        optimizer.rewind(reversed(closures))
    else:
        optimizer.rewind([closures[0], closures[0], *reversed(closures)])
    assert frozen(optimizer) == start


@by_width
@pytest.mark.parametrize("faulty", range(1, 7), ids="undoing-step-{}".format)
def test_verify_every_3_finds_a_fault_at_the_next_checked_step(faulty: int, state_bits: int) -> None:
    """States are hashed after steps 3 and 6, and at the start: undoing steps 4 and 1 is checked."""
    parameters = random_parameters((9,), (600,))
    optimizer = rh.ReversibleSGD(parameters, lr=0.01, state_bits=state_bits, verify_every=3)
    closures = take_steps(optimizer, 6, scale=0.1)
    wrong = setting_gradients(parameters, random_gradients(parameters, 99, scale=0.1))
    for step in range(6, 0, -1):
        closure = wrong if step == faulty else closures[step - 1]
        if step <= faulty and step in (1, 4):
            with pytest.raises(rh.ReversalError):
                optimizer.step_back(closure)
            return
        optimizer.step_back(closure)
    pytest.fail("the fault was never found")


def test_verify_every_3_undoes_what_is_right() -> None:
    optimizer, _, start, closures = trained(64, verify_every=3)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


def test_step_back_before_any_step() -> None:
    optimizer = rh.ReversibleSGD(random_parameters((3,)), lr=0.1)
    with refused(optimizer, rh.ReversalError, "no step to undo", "step()"):
        optimizer.step_back(lambda: None)
    closures = take_steps(optimizer, 2)
    optimizer.rewind(reversed(closures))
    with refused(optimizer, rh.ReversalError, "no step to undo"):
        optimizer.step_back(closures[0])
