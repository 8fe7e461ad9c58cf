"""What an optimizer keeps beside its groups: the parts, the steps taken and the parameters that have not begun."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from reversible_hypergrad.optim.parts import NumbersOf, Part
from reversible_hypergrad.optim.settings import Settings
from reversible_hypergrad.replay.fingerprint import Fingerprint
from reversible_hypergrad.reversible.parameters import check_parameter
from reversible_hypergrad.reversible.record import Record
from reversible_hypergrad.reversible.runs import Runs
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.rules.base import Rule

__all__ = ["History", "here", "name_of"]

Groups = Sequence[dict[str, Any]]


@dataclass
class History:
    """``parts`` in the order in which they joined: each has a log of the steps since then, or since a boundary."""

    rule: Rule
    state_bits: int
    names: Sequence[str]  # of the settings
    parts: list[Part] = field(default_factory=list)
    settings: list[Runs] = field(default_factory=list)  # per group, since it was added, or since a boundary
    steps: int = 0  # that can be undone
    steps_taken: int = 0
    waiting: list[list[int]] = field(default_factory=list)  # per group: positions of parameters that have no state yet
    environment: Fingerprint | None = None  # in which the first of the steps was taken, wherever that was

    def newcomers(self, groups: Groups) -> list[Part]:
        """Parts for the parameters whose first gradient has come.

        Raises:
            RuntimeError: if groups or parameters were added or removed behind the optimizer's back.
        """
        self._refuse_other_groups(groups)
        parts = []
        for g, positions in enumerate(self.waiting):
            params = groups[g]["params"]
            by_device: dict[torch.device, list[int]] = {}
            for i in positions:
                if params[i].grad is not None:
                    check_parameter(params[i], name_of(groups, g, i))
                    by_device.setdefault(params[i].device, []).append(i)
            for members in by_device.values():
                names = [name_of(groups, g, i) for i in members]
                parts.append(Part(g, tuple(members), State([params[i] for i in members], names, self.rule, self.state_bits)))
        if parts and self.environment is None:
            self.environment = here(groups)
        return parts

    def changed(self, groups: Groups) -> str | None:
        """What is another than it was at the first step, of what gradients depend on."""
        return None if self.environment is None else self.environment.difference(here(groups))

    def _refuse_other_groups(self, groups: Groups) -> None:
        known = [len(positions) for positions in self.waiting]
        for part in self.parts:
            known[part.group] += len(part.members)
        found = [len(group["params"]) for group in groups]
        if found != known:
            raise RuntimeError(
                f"param_groups: expected {known} parameters in its groups, got {found}: it was changed directly, so some would "
                "never train, or could not be undone. Add parameters by optimizer.add_param_group({'params': [...]}); to leave "
                "some out, construct a new optimizer, or let their gradients be None"
            )

    def append(
        self, settings: list[Settings], newcomers: Sequence[Part], records: Sequence[Record], numbers_of: NumbersOf
    ) -> None:
        """A step has been taken by the parts and ``newcomers``."""
        for part in newcomers:
            self.waiting[part.group] = [i for i in self.waiting[part.group] if i not in part.members]
        self.parts = [*self.parts, *newcomers]
        for part, record in zip(self.parts, records, strict=True):
            part.push(record, self.lately, numbers_of)
        self.settings += [Runs(len(self.names), np.float64) for _ in settings[len(self.settings) :]]
        for runs, own in zip(self.settings, settings, strict=True):
            runs.push([own[name] for name in self.names])
        self.steps += 1
        self.steps_taken += 1

    def lately(self, group: int, count: int) -> list[Settings]:
        """The settings of one group in the last ``count`` steps, oldest first."""
        return [dict(zip(self.names, row, strict=True)) for row in self.settings[group].last(count).tolist()]

    def latest(self) -> list[Settings]:
        """Of every group that was there in the last step: its settings then."""
        return [self.lately(g, 1)[0] for g, runs in enumerate(self.settings) if len(runs)]

    def take_off(self, count: int, numbers_of: NumbersOf) -> list[Settings]:
        """The last ``count`` steps count as not taken; the device knows already. Returns the settings of the first of them."""
        for _ in range(count):
            first = self.latest()
            for part in self.parts:
                part.take_off(self.lately, numbers_of)
            self._forget_step()
        return first

    def _forget_step(self) -> None:
        for runs in self.settings:
            if len(runs):
                runs.pop()
        while self.settings and not len(self.settings[-1]):
            self.settings.pop()
        self.steps -= 1
        self.steps_taken -= 1

    def pop(self) -> None:
        """The last step is undone. Parts back at a fresh start dissolve: their weights may be edited before their next step."""
        for part in self.parts:
            part.log.pop()
        self._forget_step()
        for part in self.parts:
            if part.at_fresh_start:
                self.waiting[part.group] = sorted([*self.waiting[part.group], *part.members])
        self.parts = [part for part in self.parts if not part.at_fresh_start]
        self.environment = self.environment if self.parts else None

    def begin_anew(self, groups: Groups, optimizer: str) -> None:
        """From the present weights and states, without the steps so far.

        Raises:
            OverflowError: if a weight is not finite; nothing is changed then.
            TypeError: if no state can be kept for one of the parameters, for its dtype or layout; nothing is changed then.
            ValueError: if no state can be kept for one of the parameters; nothing is changed then.
        """
        renewed = []
        for part in self.parts:
            params = groups[part.group]["params"] if part.group < len(groups) else []
            if part.members[-1] >= len(params):
                raise RuntimeError(
                    f"{part.state.names[-1]}: was removed from param_groups, which mark_boundary() cannot accept. Put it back, "
                    f"or construct a new {optimizer}"
                )
            weights = [params[i] for i in part.members]
            for weight, name in zip(weights, part.state.names, strict=True):
                check_parameter(weight, name)
            state = State(weights, part.state.names, self.rule, self.state_bits)
            state.take_states(part.state)
            # A tensor of another size begins anew.
            counts = np.where(np.array(state.sizes) == np.array(part.state.sizes), part.counts, 0)
            renewed.append(Part(part.group, part.members, state, fresh=False, offsets=counts))
        self.parts, self.settings, self.steps = renewed, [], 0
        self.environment = here(groups) if renewed else None


def here(groups: Groups) -> Fingerprint:
    """Of this process, and the devices of the parameters."""
    return Fingerprint.current(p.device for group in groups for p in group["params"])


def name_of(groups: Groups, group: int, position: int) -> str:
    names = groups[group].get("param_names")
    return f"parameter '{names[position]}'" if names else f"parameter {position} of group {group}"
