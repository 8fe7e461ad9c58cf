"""The step of a linear rule as a few numbers, read off its functions once per run."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.rules.base import Rule

__all__ = ["LinearStep"]

Terms = list[tuple[str, np.ndarray]]  # what is added up, and the factor at each step


class LinearStep:
    """A linear rule with settings that are numbers: what its functions multiply g, w and z by, at every step.

    So a step is as many passes over memory as a hand-written one, its tangents take the same ones, and its transpose as many.

    Raises:
        TypeError: if the rule's functions are not linear.
    """

    def __init__(self, rule: Rule, settings: Settings, steps: int) -> None:
        constant = all(len(setting.numbers) < 2 for setting in settings.values())
        self._last = min(steps, 2) - 1 if constant else steps - 1  # all rows from there on are the same
        self._rows = self._last + 1
        h = SimpleNamespace(
            **{
                name: torch.tensor(
                    [spec.first if spec.set_aside(settings, t) else settings[name].at(t) for t in range(self._rows)],
                    dtype=torch.float64,
                )
                for name, spec in rule.settings.items()
            }
        )
        self._name = type(rule).__name__
        with torch.enable_grad():
            g, w = self._leaf(), self._leaf()
            z = {name: self._leaf() for name in rule.states}
            self._decay = {name: self._column(factor) for name, factor in rule.decay(h, 0).items()}
            self._increments = [
                (name, self._terms(increment, {"g": g, "w": w, **z})) for name, increment in rule.increments(h, 0, g, w, z)
            ]
            self._update = self._terms(rule.update(h, 0, z, None), z)

    def move(self, step: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> None:
        """The step, in place; or that of their tangents, which moves alike."""
        row = min(step, self._last)
        for name, factors in self._decay.items():
            if name != "weight":
                z[name].mul_(factors[row])
        present = {"g": g, "w": w, **z}
        for name, terms in self._increments:
            _add(z[name], terms, row, present)
        if "weight" in self._decay:
            w.mul_(self._decay["weight"][row])
        _add(w, self._update, row, z, -1.0)

    def pull(self, step: int, aw: Tensor, az: Mapping[str, Tensor]) -> Tensor:
        """The transposed step, in place, but for the states' decay. Returns the direction, which may be one of ``az``."""
        row = min(step, self._last)
        for name, factors in self._update:
            if factors[row]:
                az[name].add_(aw, alpha=-factors[row])
        if "weight" in self._decay:
            aw.mul_(self._decay["weight"][row])
        direction: Tensor | None = None
        for name, terms in reversed(self._increments):
            for source, factors in terms:
                factor = factors[row]
                if source == "g":
                    part = az[name] if factor == 1.0 else az[name] * factor
                    direction = part if direction is None else direction + part
                elif factor:
                    (aw if source == "w" else az[source]).add_(az[name], alpha=factor)
        return torch.zeros_like(aw) if direction is None else direction

    def decay_back(self, step: int, az: Mapping[str, Tensor]) -> None:
        """The rest of the transposed step, once the direction is used."""
        for name, factors in self._decay.items():
            if name != "weight":
                az[name].mul_(factors[min(step, self._last)])

    def _leaf(self) -> Tensor:
        return torch.zeros(self._rows, dtype=torch.float64, requires_grad=True)

    def _column(self, factor: Any) -> np.ndarray:
        return torch.as_tensor(factor, dtype=torch.float64).expand(self._rows).numpy()

    def _terms(self, value: Tensor, leaves: Mapping[str, Tensor]) -> Terms:
        found = torch.autograd.grad(value.sum(), list(leaves.values()), create_graph=True, allow_unused=True)
        if bool(value.any()) or any(by is not None and by.requires_grad for by in found):
            raise TypeError(
                f"{self._name}: expected increments and update that are linear in g, w and z, since it says linear = True. Leave "
                "that out"
            )
        return [(name, by.numpy()) for name, by in zip(leaves, found, strict=True) if by is not None]


def _add(onto: Tensor, terms: Terms, row: int, present: Mapping[str, Tensor], sign: float = 1.0) -> None:
    for source, factors in terms:
        if factors[row]:
            onto.add_(present[source], alpha=sign * factors[row])
