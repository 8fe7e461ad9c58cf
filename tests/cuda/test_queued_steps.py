"""ReversibleSGD's steps on a GPU are queued, and looked at later: here on the CPU's ops and on the emulated kernels."""

from __future__ import annotations

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from queued_steps import (
    BAD,
    OUTGROWN,
    Side,
    assert_goes_on_from_before_a_refused_step,
    assert_grown_and_undone,
    assert_refused_once,
    grow,
    queued_from_the_second,  # noqa: F401
)
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.optim import queue
from reversible_hypergrad.reversible import integers, moves, outcome

STEPS = 40


@pytest.fixture(params=["cpu", "emulated"])
def late(request, monkeypatch, queued_from_the_second):  # noqa: F811
    """Nothing is read where it is made. The list counts the outcomes of each read that found any."""
    if request.param == "emulated":
        monkeypatch.setattr(moves, "ops", request.getfixturevalue("emulated"))
    for module in (outcome, queue, integers):
        monkeypatch.setattr(module, "is_late", lambda device: True)
    counts = []
    join = torch.cat
    monkeypatch.setattr(outcome.torch, "cat", lambda words, *rest: (counts.append(len(words)), join(words, *rest))[1])
    return counts


WIDTHS = pytest.mark.parametrize("state_bits", [64, 32], ids=lambda bits: f"state{bits}")


@WIDTHS
@pytest.mark.parametrize("verify_every", [1, 7])
def test_the_same_bits_as_steps_that_are_waited_for(state_bits, verify_every, late):
    queued, waiting = (Side(state_bits, verify_every=verify_every, queued=q) for q in (True, False))
    for side in (waiting, queued):
        late.clear()
        for step in range(STEPS):
            side.step(step)
            side.scheduler.step()
        reads = list(late)
        side.optimizer.synchronize()
    assert len(reads) < 10  # of the first step, and of the new parts' states
    queued.assert_same(waiting)
    queued.rewind(STEPS)
    queued.assert_at_start()


def test_the_first_steps_are_looked_at(late, monkeypatch):
    monkeypatch.setattr(queue, "LOOK_AT_FIRST", 3)
    side = Side()
    side.step(0)
    late.clear()
    for step in range(1, 10):
        side.step(step)
    assert late == [1] * 4  # two steps of two groups


def test_the_host_looks_at_every_64th_step(late):
    side = Side()
    side.step(0)
    late.clear()
    for step in range(1, 64):
        side.step(step)
    assert late == []
    side.step(64)
    assert late == [2 * 64]  # two groups
    side.optimizer.synchronize()
    assert late == [2 * 64]


LOOKS = {
    "synchronize": lambda side: side.optimizer.synchronize(),
    "step_back": lambda side: side.optimizer.step_back(lambda: pytest.fail("the closure must not run")),
    "rewind": lambda side: side.optimizer.rewind([lambda: pytest.fail("the closure must not run")]),
    "mark_boundary": lambda side: side.optimizer.mark_boundary(),
    "memory": lambda side: side.optimizer.memory(),
    "state_dict": lambda side: side.optimizer.state_dict(),
    "load_state_dict": lambda side: side.optimizer.load_state_dict({}),
    "deepcopy": lambda side: copy.deepcopy(side.optimizer),
    "a new parameter's first step": lambda side: add_and_step(side),
    "the 64th step": lambda side: [side.step(step) for step in range(100, 164)],
}


def add_and_step(side: Side) -> None:
    new = nn.Parameter(torch.ones(3))
    new.grad = torch.ones(3)
    side.optimizer.add_param_group({"params": [new]})
    side.optimizer.step()


@pytest.mark.parametrize("look", LOOKS)
def test_a_refused_step_is_told_of_by(look, late):
    side, expected = Side(), Side(queued=False)
    for step in range(10):
        side.step(step)
        expected.step(step)
    side.step(10, (0, math.nan))
    for step in range(11, 15):
        side.step(step)
    with pytest.raises(
        FloatingPointError, match=r"^step 11: parameter 0 of group 0: its gradient is not finite, or .*and nothing"
    ):
        LOOKS[look](side)
    if look == "a new parameter's first step":
        del side.optimizer.param_groups[-1]
        side.optimizer._history.waiting.pop()
    side.assert_same(expected)
    side.optimizer.synchronize()  # said once


@WIDTHS
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("after", [0, 1, 20])
def test_training_goes_on_from_before_a_refused_step(state_bits, bad, after, late):
    assert_goes_on_from_before_a_refused_step(Side(state_bits), Side(state_bits, queued=False), BAD[bad], after)


@WIDTHS
@pytest.mark.parametrize("outgrown", OUTGROWN)
def test_steps_after_a_refused_one_are_looked_at_and_make_room(state_bits, outgrown, late):
    assert_refused_once(Side(state_bits), outgrown)


@WIDTHS
def test_what_grows_from_look_to_look_gets_room(state_bits, late):
    side = Side(state_bits)
    grow(side)
    assert len(late) < 20
    assert_grown_and_undone(side)


def test_a_bias_that_begins_at_zero_may_grow_as_large_as_the_weights(late):
    """With nobody looking."""
    weight, bias = nn.Parameter(torch.ones(100)), nn.Parameter(torch.zeros(10))
    optimizer = rh.ReversibleSGD([weight, bias], lr=0.01, momentum=0.9, state_bits=32)
    weight.grad, bias.grad = torch.zeros(100), torch.full((10,), -0.2)
    for _ in range(60):
        optimizer.step()
    optimizer.synchronize()
    assert bool((bias > 1.0).all())
    optimizer.rewind([lambda: None] * 60)
    assert not bias.any()


def test_a_tensor_without_gradients_at_first_does_not_hold_up_the_queue(late):
    """Its quanta are as large as those of its neighbours, from the first look on."""
    side = Side()

    def give(step: int) -> None:
        side.give(step)
        if step < 3:
            side.weights[1].grad.zero_()

    for step in range(20):
        give(step)
        side.optimizer.step()
    assert len(late) < 5
    side.optimizer.synchronize()
    (part, _) = side.optimizer._history.parts
    assert part.state.z[0].count_nonzero() > 0.9 * sum(part.state.sizes)
    for step in reversed(range(20)):
        side.optimizer.step_back(lambda step=step: give(step))
    side.assert_at_start()


def test_the_first_step_after_a_boundary(late):
    """There the visible weights are not the rounded ones."""
    side = Side(32)
    with torch.no_grad():
        for w in side.weights:
            w.mul_(1.0 + 1e-3)
    side.step(0)
    side.optimizer.mark_boundary()
    before = [w.detach().clone() for w in side.weights]
    side.step(1, (0, math.nan))
    side.step(2)
    with pytest.raises(FloatingPointError, match="1 later step"):
        side.optimizer.synchronize()
    for w, expected in zip(side.weights, before, strict=True):
        assert torch.equal(w, expected)
    side.step(1)
    side.optimizer.step_back(lambda: side.give(1))
    for w, expected in zip(side.weights, before, strict=True):
        assert torch.equal(w, expected)


def test_a_first_step_is_waited_for(late):
    side = Side()
    with pytest.raises(FloatingPointError, match="parameter 1 of group 0: its gradient is not finite, so the step was refused"):
        side.step(0, (1, math.nan))
    side.assert_at_start()
    side.step(0)


def test_saved_while_steps_are_queued(late):
    side, expected = Side(), Side(queued=False)
    for step in range(9):
        side.step(step)
        expected.step(step)
    file = io.BytesIO()
    torch.save(side.optimizer.state_dict(), file)
    file.seek(0)
    other = Side()
    for w, trained in zip(other.weights, side.weights, strict=True):
        w.data.copy_(trained.detach())
    other.optimizer.load_state_dict(torch.load(file, weights_only=True))
    other.assert_same(expected)
    other.rewind(9)
    other.assert_at_start()


def test_a_copy_has_a_queue_of_its_own(late):
    side = Side()
    side.step(0)
    side.step(1)
    other = copy.deepcopy(side)
    side.step(2, (0, math.nan))
    other.step(2)
    with pytest.raises(FloatingPointError):
        side.optimizer.synchronize()
    other.optimizer.synchronize()
    other.rewind(3)
    other.assert_at_start()


def test_parameters_on_two_devices_are_not_queued(late):
    class Part:
        def __init__(self, device):
            moves = SimpleNamespace(queues=True)
            self.state, self.steps = SimpleNamespace(x=torch.empty(0, device=device), moves=moves, any_unset=False), 1

    assert queue.Queue().takes([Part("cpu"), Part("cpu")])
    assert not queue.Queue().takes([Part("cpu"), Part("meta")])
    assert not queue.Queue().takes([])
