"""ReversibleSGD's steps on a GPU are queued, and looked at later: here on the CPU's ops and on the emulated kernels."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from ticket_journey import assert_stands_still, journey
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.optim import queue
from reversible_hypergrad.reversible import bucket, outcome

STEPS = 40


@pytest.fixture(params=["cpu", "emulated"])
def late(request, monkeypatch, emulated):
    """Nothing is read where it is made. The list counts the outcomes of each read that found any."""
    if request.param == "emulated":
        monkeypatch.setattr(bucket, "ops", emulated)
    monkeypatch.setattr(outcome, "is_late", lambda device: True)
    monkeypatch.setattr(queue, "is_late", lambda device: True)
    counts = []
    join = torch.cat
    monkeypatch.setattr(outcome.torch, "cat", lambda words, *rest: (counts.append(len(words)), join(words, *rest))[1])
    return counts


class Side:
    """A model of two groups and three dtypes, its optimizer, and a gradient for every step."""

    def __init__(self, state_bits: int = 64, queued: bool = True, **settings) -> None:
        generator = torch.Generator().manual_seed(5)

        def tensor(*shape, dtype=torch.float32):
            return torch.randn(*shape, generator=generator).to(dtype)

        self.weights = [
            nn.Parameter(tensor(3, 700)),
            nn.Parameter(tensor(513, dtype=torch.bfloat16)),
            nn.Parameter(tensor(70, dtype=torch.float64)),
        ]
        self.start = [w.detach().clone() for w in self.weights]
        groups = [{"params": self.weights[:2]}, {"params": self.weights[2:], "momentum": 0.5, "weight_decay": 0.01}]
        self.optimizer = rh.ReversibleSGD(groups, lr=0.05, state_bits=state_bits, **settings)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)
        if not queued:
            self.optimizer._queue.takes = lambda parts: False

    def give(self, step: int, spoil: tuple[int, float] | None = None) -> None:
        generator = torch.Generator().manual_seed(1000 + step)
        for w in self.weights:
            w.grad = torch.randn(w.shape, generator=generator).to(w.dtype)
        if spoil is not None:
            which, value = spoil
            self.weights[which].grad.view(-1)[37] = value

    def step(self, step: int, spoil: tuple[int, float] | None = None) -> None:
        self.give(step, spoil)
        self.optimizer.step()

    def states(self) -> list[torch.Tensor]:
        parts = self.optimizer._history.parts
        integers = [t for part in parts for t in (part.bucket.x, part.bucket.v, part.bucket.accumulators)]
        return [t.detach().clone() for t in (*self.weights, *integers)]

    def numbers(self):
        self.optimizer.synchronize()
        parts = [(part.bucket.bound, part.steps, part.hash) for part in self.optimizer._history.parts]
        hashes = [record.hash_before for entry in self.optimizer._history.entries for record in entry.records]
        return parts, hashes, self.optimizer._history.steps_taken, [dict(g, params=None) for g in self.optimizer.param_groups]

    def assert_same(self, other: Side) -> None:
        for mine, expected in zip(self.states(), other.states(), strict=True):
            assert torch.equal(mine, expected)
        assert self.numbers() == other.numbers()

    def rewind(self, steps: int) -> None:
        for step in reversed(range(steps)):
            self.optimizer.step_back(lambda step=step: self.give(step))

    def assert_at_start(self) -> None:
        for w, expected in zip(self.weights, self.start, strict=True):
            assert torch.equal(w, expected)


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


@WIDTHS
@pytest.mark.parametrize("bad", [math.nan, 60000.0])
def test_a_refused_step_stops_the_later_ones_on_the_device(state_bits, bad, emulated):
    expected = journey("cpu", state_bits, bad)
    assert_stands_still(expected)
    for mine, theirs in zip(journey("cpu", state_bits, bad, emulated), expected, strict=True):
        assert torch.equal(mine, theirs)


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


BAD = {"nan": (0, math.nan), "infinite": (1, math.inf), "of the last group": (2, -math.inf), "too large": (2, 1e30)}


@WIDTHS
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("after", [0, 1, 20])
def test_training_goes_on_from_before_a_refused_step(state_bits, bad, after, late):
    """Whatever was queued behind it; the scheduler went on, and its rate is taken back as well."""
    side, expected = Side(state_bits), Side(state_bits, queued=False)
    for step in range(12):
        for each in (side, expected):
            each.step(step)
            each.scheduler.step()
    side.step(12, BAD[bad])
    for step in range(13, 13 + after):
        side.scheduler.step()
        side.step(step, (0, math.inf) if step == 15 else None)
    later = f"{after} later steps were queued" if after else "clip the gradient$"
    with pytest.raises(FloatingPointError, match=f"step 13: .*{later}"):
        side.optimizer.synchronize()
    side.assert_same(expected)
    side.scheduler = copy.copy(expected.scheduler)
    side.scheduler.optimizer = side.optimizer
    for step in range(12, 30):
        for each in (side, expected):
            each.step(step)
    side.assert_same(expected)
    side.rewind(30)
    side.assert_at_start()


@WIDTHS
@pytest.mark.parametrize("step", ["velocity", "weight"])
def test_values_that_leave_the_range(state_bits, step, late):
    side, expected = Side(state_bits), Side(state_bits, queued=False)
    for each in (side, expected):
        each.step(0)
        if step == "weight":
            each.optimizer.param_groups[0]["lr"] = 1e9
    for _ in range(3):
        side.step(1, None if step == "weight" else (0, 127.0 if state_bits == 32 else 32767.0))
    with pytest.raises(OverflowError, match="velocity is beyond" if step == "velocity" else "a weight would leave"):
        side.optimizer.synchronize()
    if step == "weight":
        side.assert_same(expected)


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
            self.bucket = type("Bucket", (), {"x": torch.empty(0, device=device)})

    assert queue.Queue.takes([Part("cpu"), Part("cpu")])
    assert not queue.Queue.takes([Part("cpu"), Part("meta")])
    assert not queue.Queue.takes([])
