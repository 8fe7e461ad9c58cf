"""Ctrl-C at every line of step(), step_back() and what else changes an optimizer: before it or after it, never between."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from interrupting import first, interrupt_at, lines_of
from optim_problems import Closure, frozen, random_gradients, random_parameters, setting_gradients

import reversible_hypergrad as rh

MAKERS: dict[str, Callable[..., rh.ReversibleOptimizer]] = {
    "SGD": rh.ReversibleSGD,
    "Adam": rh.ReversibleAdam,
    "AdamW": rh.ReversibleAdamW,
    "Lion": rh.ReversibleLion,
    "Muon": rh.ReversibleMuon,
    "RAdam": rh.ReversibleRAdam,
    "RMSprop": lambda params, lr: rh.ReversibleRMSprop(params, lr=lr, momentum=0.9),
    "TracedSGD": rh.ReversibleTracedSGD,
}
# A rule with a program, and one without, at every so-many-th line; slowly all.
QUICK = [pytest.param("SGD", 1, id="SGD"), pytest.param("Lion", 8, id="Lion, some lines")]
CASES = [*QUICK, *(pytest.param(name, 1, marks=pytest.mark.slow, id=f"{name}, each line") for name in MAKERS)]
STEPS = 3


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    set_num_threads(1)


class Training:
    """Two groups, so that one part of a step may have moved and the other one not; the second gradient comes late."""

    def __init__(self, name: str, taken: int = 0) -> None:
        self.parameters = random_parameters((3, 2), (4, 5))
        first, second = self.parameters
        self.optimizer = MAKERS[name]([{"params": [first]}, {"params": [second], "lr": 0.03}], lr=0.1)
        self.closures = [self.closure(step) for step in range(STEPS)]
        for closure in self.closures[:taken]:
            self.optimizer.step(closure)

    @property
    def marks(self) -> dict[str, Any]:
        return frozen(self.optimizer)

    def closure(self, step: int) -> Closure:
        first, second = random_gradients(self.parameters, step)
        put = setting_gradients(self.parameters, [first, second if step else None])

        def closure() -> Any:
            return put()

        return closure

    def to_the_end_and_back(self, taken: int) -> None:
        for closure in self.closures[taken:]:
            self.optimizer.step(closure)
        self.optimizer.rewind(reversed(self.closures))


@dataclass
class Action:
    """After so many steps, one forth or back."""

    before: int
    after: int

    def __call__(self, training: Training) -> None:
        if self.after > self.before:
            training.optimizer.step(training.closures[self.before])
        else:
            training.optimizer.step_back(training.closures[self.after])


# In the second step, the second parameter joins.
ACTIONS = {"join": Action(1, 2), "step": Action(2, 3), "step back": Action(3, 2), "let go": Action(2, 1)}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize(("name", "stride"), CASES)
def test_every_line(name: str, stride: int, action: Action) -> None:
    training = Training(name)
    start = training.marks
    training = Training(name, action.before)
    before = training.marks
    lines = lines_of(lambda: action(training))
    after = training.marks
    assert after != before
    assert len(lines) > 50
    for place in first(lines)[::stride]:
        training = Training(name, action.before)
        assert interrupt_at(place, partial(action, training)), lines[place]
        marks = training.marks
        assert marks in (before, after), f"between, by Ctrl-C at {lines[place]}"
        training.to_the_end_and_back(action.before if marks == before else action.after)
        assert training.marks == start, lines[place]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


CHANGES: dict[str, Callable[[rh.ReversibleOptimizer, dict[str, Any]], Any]] = {
    "mark_boundary": lambda optimizer, saved: optimizer.mark_boundary(),
    "add_param_group": lambda optimizer, saved: optimizer.add_param_group({"params": random_parameters((2, 2)), "lr": 0.01}),
    "load_state_dict": lambda optimizer, saved: optimizer.load_state_dict(saved),
    "state_dict": lambda optimizer, saved: optimizer.state_dict(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_changes(name: str) -> None:
    """The saved state has other settings, which belong to its steps."""
    other = Training("SGD", 2)
    other.optimizer.param_groups[0]["lr"] = 0.5
    saved, change = copy.deepcopy(other.optimizer.state_dict()), CHANGES[name]
    training = Training("SGD", 2)
    before = training.marks
    lines = lines_of(lambda: change(training.optimizer, saved))
    after = training.marks
    assert len(lines) > 20
    for place in first(lines):
        training = Training("SGD", 2)
        assert interrupt_at(place, partial(change, training.optimizer, saved)), lines[place]
        names = list(training.optimizer.state.values())
        assert all("format_version" in own and own["format_version"] is None for own in names), lines[place]
        assert training.marks in (before, after), f"between, by Ctrl-C at {lines[place]}"


def test_a_time_limit_that_raises() -> None:
    """Real signals at random moments; whatever they break off, the optimizer goes on from before or after it."""

    def out_of_time(number: int, frame: Any) -> None:
        raise TimeoutError

    (weight,) = random_parameters((50, 20))
    optimizer = rh.ReversibleAdamW([weight], lr=0.01)
    start, taken, broken = frozen(optimizer), 0, 0
    closures = [setting_gradients([weight], random_gradients([weight], step)) for step in range(20)]
    moments = random.Random(0)
    before = signal.signal(signal.SIGALRM, out_of_time)
    try:
        for _ in range(400):
            forth = taken == 0 or (taken < 20 and moments.random() < 0.5)
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 1e-3))
                optimizer.step(closures[taken]) if forth else optimizer.step_back(closures[taken - 1])
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeoutError:
                broken += 1
            taken = optimizer.state_dict()["state"][0]["steps_taken"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert broken > 20
    assert torch.is_grad_enabled()
    optimizer.rewind(reversed(closures[:taken]))
    assert frozen(optimizer) == start
