"""One device's part of a reversible run: its steps forward and back, and their log."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.problem.setting import Setting, Settings
from reversible_hypergrad.reversible.beginning import Frozen, begin
from reversible_hypergrad.reversible.flat import FlatGroup
from reversible_hypergrad.reversible.lateness import LOOK_AT_FIRST
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.parameters import default_bits
from reversible_hypergrad.reversible.record import Record, StepNumbers, combine
from reversible_hypergrad.reversible.run_log import RunLog, kinds_of
from reversible_hypergrad.reversible.scales import ScaleState
from reversible_hypergrad.reversible.signs import joined, split
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.rules.step import count_below_eps
from reversible_hypergrad.storage.places import open_store

__all__ = ["ReversibleGroup", "StepSettings", "reversible_groups"]


class StepSettings:
    """A rule's settings for some tensors, step by step, as the kernels take them.

    Args:
        settings: one mapping per tensor.
        real: dtype of the kernels' arithmetic.
    """

    def __init__(self, problem: Problem, settings: Sequence[Settings], weights: Sequence[Tensor], real: torch.dtype) -> None:
        self.rule, self.real, self._settings = problem.rule, real, list(settings)
        self._per_weight = [
            {n: self._seen(s.elementwise.to(real), weight) for n, s in own.items() if s.elementwise is not None}
            for own, weight in zip(self._settings, weights, strict=True)
        ]
        self._none = torch.empty(0, dtype=real, device=weights[0].device)
        alike = {tuple(own.values()): i for i, own in reversed(list(enumerate(self._settings)))}
        self._first_alike = [alike[tuple(own.values())] for own in self._settings]
        self._constant = self.rule.linear and all(len(s.numbers) < 2 for own in self._settings for s in own.values())
        self._later: StepNumbers | None = None  # of all steps but the first, if constant

    def at(self, step: int) -> StepNumbers:
        if step > 0 and self._later is not None:
            return self._later
        rows: dict[int, tuple[list[float], list[float], list[Tensor], Any]] = {}
        for i in sorted(set(self._first_alike)):
            rows[i] = self._row(i, step)
        chosen = [rows[i] for i in (self._first_alike if len(rows) > 1 else self._first_alike[:1])]
        elements = [tensor for i in self._first_alike for tensor in rows[i][2]]
        numbers = StepNumbers(
            factors=np.array([row[0] for row in chosen]),
            of_rule=np.array([row[1] for row in chosen]),
            elements=tuple(elements) if any(tensor.numel() for tensor in elements) else (),
            settings=tuple(row[3] for row in chosen),
            steps=(step,),
        )
        if step > 0 and self._constant:
            self._later = numbers
        return numbers

    def h(self, index: int, step: int) -> SimpleNamespace:
        """The rule's settings of one tensor, those with a value per weight in the form that its functions take."""

        def read(name: str, setting: Setting) -> Any:
            return self._per_weight[index].get(name) if setting.elementwise is not None else setting.at(step)

        return self.rule.at(self._settings[index], step, read)

    def _seen(self, elements: Tensor, weight: Tensor) -> Tensor:
        return elements if self.rule.elementwise else elements.as_strided(weight.shape, weight.stride())

    def _row(self, index: int, step: int) -> tuple[list[float], list[float], list[Tensor], Any]:
        h = self.h(index, step)
        decay = self.rule.decay(h, step)
        numbers = self.rule.numbers(h, step) if self.rule.program else ()
        per_weight = bool(self._per_weight[index])
        return (
            [float(decay.get(name, 1.0)) for name in (*self.rule.states, "weight")],
            [0.0 if isinstance(number, Tensor) else number for number in numbers],
            [number if isinstance(number, Tensor) and per_weight else self._none for number in numbers],
            h,
        )


class ReversibleGroup(FlatGroup):
    """Parameters of one device and rule, and weights of double or none. Vectors have the layout of the integer state.

    A run is one segment or several; planes and log are those of the recorded one.
    """

    def __init__(self, problem: Problem, members: Sequence[int], state_bits: int, verify_every: int, place: str | Path) -> None:
        weights = [problem.weights[i] for i in members]
        self.state = State(weights, [problem.names[i] for i in members], problem.rule, state_bits)
        super().__init__(problem, members, self.state.offsets)
        self.rule, self.verify_every, self.steps = problem.rule, verify_every, problem.steps
        real = torch.float64 if state_bits == 64 else torch.float32
        self.step_settings = StepSettings(problem, self.settings, weights, real)
        self.store = open_store(place, weights[0].device)
        self.first = problem.steps.start  # step of the present segment
        self._given = [problem.states[i] for i in members]
        self._exact: Sequence[Frozen] = problem.exact or ()
        self._begin()
        self._first_hash = self.state.hash()
        self._hash: int | Outcome | None = self._first_hash  # of the present state, or who will know it
        self.log = RunLog(self._kinds())
        self._logged: list[Any] = []  # by the rule, step by step; of most rules nothing
        self._kept: list[tuple[ScaleState, Any, Any]] = []  # beside the integers of kept states

    def _kinds(self) -> Any:
        """Slots decay alike where their settings are the same objects. A weight that the rule never decays is left out."""
        names = (*self.rule.states, "weight")
        decays = self.rule.decay(self.step_settings.h(0, self.first), self.first) if self.steps else {}
        return kinds_of([[(name, *own.values()) if name in decays else None for name in names] for own in self.settings])

    # Forward

    def step(self, step: int, gradients: Sequence[Tensor], record: bool) -> Outcome:
        """One step.

        Raises:
            FloatingPointError: if it was refused for a gradient that is not finite.
            OverflowError: if it was refused for what has left the range of floating-point numbers.

        Nothing is changed then. On a GPU, nobody has looked: if the outcome, once read, holds flags, the run is over, and the
        caller reports them.
        """
        with_hash = record and self._is_checked(step + 1)
        own = [gradients[m] for m in self.members]
        look = step < LOOK_AT_FIRST or not self.state.is_late
        entry, outcome = self.state.step(own, self.step_settings.at(step), None, with_hash, look=look)
        if record:
            if self._is_checked(step):
                assert self._hash is not None
                self.log.push_hash(self._hash)
            self.log.push(step, entry.scales, entry.scales_after)
            if entry.logged is not None and any(numbers is not None for numbers in entry.logged):
                self._logged.append(entry.logged)
            if entry.planes.numel():
                self.store.push(entry.planes)
            if entry.signs is not None:
                self.store.push(joined(entry.signs, self.state.plane_bytes.tolist()))
            self._hash = outcome if with_hash else None
        return outcome

    def begin_segment(self, step: int) -> None:
        """What came before cannot be undone from here on."""
        self.first = step
        self._hash = self.state.hash()

    def begin_again(self) -> None:
        """At the initial weights, which must be the visible ones."""
        state = self.state
        state.allocate(state.weights, state.names, state.rule, state.format.state_bits)
        state.quantize_weights()
        self._begin()
        self.begin_segment(self.steps.start)

    def _begin(self) -> None:
        """At the initial weights, with the states of a run that is continued, if one is."""
        if self._exact or any(self._given):
            factors = self.step_settings.at(self.steps.start).factors if self.steps else np.ones(self.state.slots)
            begin(self.state, self._given, self._exact, factors)

    def push_state(self) -> None:
        """Keeps the present state, to begin a segment from again."""
        state = self.state
        for integers in (state.x, *state.z):
            self.store.push(integers.clone().view(torch.uint8))
        self._kept.append((state.scales.state, state.unset.copy(), state.more_room.copy()))

    def pop_state(self) -> None:
        state = self.state
        for integers in reversed((state.x, *state.z)):
            integers.copy_(self.store.pop().view(integers.dtype))
        state.scales.state, state.unset, state.more_room = self._kept.pop()
        state.show_weights()

    # Back

    def pop_record(self, step: int) -> Record:
        """What undoing ``step``, the last one that is left, needs beside its gradient. The state's scales are those before it
        afterwards."""
        given = self.step_settings.at(step)
        before, room = self.log.pop(step, self.state.scales.state)
        signs = split(self.store.pop(), self.state.plane_bytes.tolist()) if self.rule.keeps_signs else None
        record = self.state.go_back(given, before, room, self.store.pop)
        record.hash_before = self.log.hashes.pop() if self._is_checked(step) else None
        record.logged = self._logged.pop() if self._logged else None
        record.signs = signs
        return record

    def suspects(self, step: int, weights: Outcome, states: Outcome, hash_before: int | None) -> list[str]:
        """Names of parameters that undoing ``step`` did not restore, by the outcomes of both phases; empty if all is as it was
        (as far as checked). Of the first step the state itself is looked at: call it while that is the present one."""
        flagged = [name for name, flag in zip(self.state.names, states.flags, strict=True) if flag]
        wrong_hash = hash_before is not None and combine(weights.hash, states.hash) != hash_before
        left_over = step == self.steps.start and self.state.hash() != self._first_hash
        return (flagged or self.state.names) if flagged or wrong_hash or left_over else []

    # At the end

    def states(self) -> list[dict[str, Tensor]]:
        """Copies of what the states stand for, per member, in its weight's shape."""
        names = list(self.rule.states)
        return [
            {name: self.view_of_flat(self.state.value(i, k, self.dtype), i) for k, name in enumerate(names)}
            for i in range(len(self.members))
        ]

    def freeze(self) -> Frozen:
        return Frozen.of(self.state, at_start=not self.steps)

    # Sizes

    def weights_below_eps(self) -> int:
        """After the last step."""
        states = list(enumerate(self.rule.states))

        def of_member(i: int) -> dict[str, Tensor]:
            return {name: self.state.value(i, k, self.dtype) for k, name in states}

        return count_below_eps(self.rule, self.settings, self.steps, of_member)

    def information_bytes(self) -> int:
        return self.store.nbytes

    def log_bytes(self) -> int:
        return self.log.nbytes

    def _is_checked(self, step: int) -> bool:
        return (step - self.first) % self.verify_every == 0


def reversible_groups(problem: Problem, state_bits: int | None, verify_every: int, place: str | Path) -> list[ReversibleGroup]:
    """One per device and rule, and float64 weights apart, whose adjoint is float64, too."""
    members: dict[tuple[torch.device, bool, int], list[int]] = {}
    for i, weight in enumerate(problem.weights):
        members.setdefault((weight.device, weight.dtype == torch.float64, id(problem.rule_of(i))), []).append(i)
    return [
        ReversibleGroup(
            problem.under(problem.rule_of(m[0])),
            m,
            state_bits or default_bits(torch.float64 if is_double else torch.float32),
            verify_every,
            place,
        )
        for (_, is_double, _), m in members.items()
    ]
