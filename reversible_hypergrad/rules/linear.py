"""The step of a linear rule as a few numbers, read off its functions once per run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.rules.base import Rule

__all__ = ["Before", "LinearStep"]


class Term(NamedTuple):
    """A multiple of g, w or a state."""

    source: str
    factors: np.ndarray  # one per row
    slopes: dict[str, np.ndarray]  # its derivatives by the settings that want one


class Before(NamedTuple):
    """What a step began with."""

    g: Tensor
    w: Tensor
    z: Mapping[str, Tensor]


class LinearStep:
    """A linear rule with settings that are numbers: what its functions multiply g, w and z by, at every step.

    So a step is as many passes over memory as a hand-written one, its tangents take the same ones, its transpose as many, and a
    derivative by a setting is an inner product.

    Raises:
        TypeError: if the rule's functions are not linear.
    """

    def __init__(self, rule: Rule, settings: Settings, steps: range) -> None:
        self._first = steps.start
        constant = all(len(setting.numbers) < 2 for setting in settings.values())
        rows = steps[:2] if constant else steps
        self._last = len(rows) - 1  # all rows from there on are the same
        self._name = type(rule).__name__
        self._learned: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}  # 0 in the rows where a setting is set aside
        h = rule.columns(settings, rows)
        for name, spec in rule.settings.items():
            if settings[name].source is not None:
                self._learned[name] = getattr(h, name).clone().requires_grad_()
                self._given[name] = torch.from_numpy(~spec.set_aside_at(settings, rows))
                setattr(h, name, self._learned[name])
        with torch.enable_grad():
            zeros = torch.zeros(self._last + 1, dtype=torch.float64)
            sources = {name: zeros.clone().requires_grad_() for name in ("g", "w", *rule.states)}
            z = {name: sources[name] for name in rule.states}
            self._decay = {name: self._term(name, factor) for name, factor in rule.decay(h, 0).items()}
            self._increments = [
                (name, self._terms(increment, sources))
                for name, increment in rule.increments(h, 0, sources["g"], sources["w"], z)
            ]
            self._update = self._terms(rule.update(h, 0, z, None), sources)
        self._learned, self._given = {}, {}

    def move(self, step: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> None:
        """The step, in place; or that of their tangents, which move alike."""
        row = self._row(step)
        for name, term in self._decay.items():
            if name != "weight":
                z[name].mul_(term.factors[row])
        for name, terms in self._increments:
            _add(z[name], terms, row, {"g": g, "w": w, **z})
        if "weight" in self._decay:
            w.mul_(self._decay["weight"].factors[row])
        _add(w, self._update, row, z, -1.0)

    def pull(
        self, step: int, aw: Tensor, az: Mapping[str, Tensor], before: Before | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The transposed step, in place, but for the states' decay. Returns the direction, which may be one of ``az``, and the
        derivatives by settings.

        Args:
            before: what the step began with, if there are settings to learn.
        """
        row = self._row(step)
        by: dict[str, Tensor] = {}
        stages = None if before is None else self._stages(row, before)
        for term in self._update:
            if stages is not None:
                _credit(by, term, row, aw, stages[-1][term.source], -1.0)
            if term.factors[row]:
                az[term.source].add_(aw, alpha=-term.factors[row])
        if "weight" in self._decay:
            if before is not None:
                _credit(by, self._decay["weight"], row, aw, before.w)
            aw.mul_(self._decay["weight"].factors[row])
        direction: Tensor | None = None
        for i, (name, terms) in reversed(list(enumerate(self._increments))):
            for term in terms:
                factor = term.factors[row]
                if stages is not None:
                    _credit(by, term, row, az[name], stages[i][term.source])
                if term.source == "g":
                    part = az[name] if factor == 1.0 else az[name] * factor
                    direction = part if direction is None else direction + part
                elif factor:
                    (aw if term.source == "w" else az[term.source]).add_(az[name], alpha=factor)
        for name, term in self._decay.items():
            if before is not None and name != "weight":
                _credit(by, term, row, az[name], before.z[name])
        return torch.zeros_like(aw) if direction is None else direction, by

    def decay_back(self, step: int, az: Mapping[str, Tensor]) -> None:
        """The rest of the transposed step, once the direction is used."""
        for name, term in self._decay.items():
            if name != "weight":
                az[name].mul_(term.factors[self._row(step)])

    def _row(self, step: int) -> int:
        return min(step - self._first, self._last)

    def _stages(self, row: int, before: Before) -> list[dict[str, Tensor]]:
        """What the increments see, one after the other, and then the update."""
        z = {name: x * self._decay[name].factors[row] if name in self._decay else x for name, x in before.z.items()}
        stages = [{"g": before.g, "w": before.w, **z}]
        for name, terms in self._increments:
            new = stages[-1][name]
            for term in terms:
                if term.factors[row]:
                    new = torch.add(new, stages[-1][term.source], alpha=term.factors[row])
            stages.append({**stages[-1], name: new})
        return stages

    def _terms(self, value: Tensor, sources: Mapping[str, Tensor]) -> list[Term]:
        found = torch.autograd.grad(value.sum(), list(sources.values()), create_graph=True, allow_unused=True)
        again = [by.sum() for by in found if by is not None and by.requires_grad]
        bent = torch.autograd.grad(again, list(sources.values()), allow_unused=True) if again else []
        if bool(value.any()) or any(by is not None for by in bent):
            raise TypeError(
                f"{self._name}: expected increments and update that are linear in g, w and z, since it says linear = True. Leave "
                "that out"
            )
        return [self._term(name, by) for name, by in zip(sources, found, strict=True) if by is not None]

    def _term(self, source: str, factor: Any) -> Term:
        factor = torch.as_tensor(factor, dtype=torch.float64).expand(self._last + 1)
        slopes: Sequence[Tensor | None] = [None] * len(self._learned)
        if factor.requires_grad:
            slopes = torch.autograd.grad(factor.sum(), list(self._learned.values()), allow_unused=True, retain_graph=True)
        by_name = zip(self._learned, slopes, strict=True)
        return Term(
            source,
            factor.detach().numpy(),
            {name: (slope.detach() * self._given[name]).numpy() for name, slope in by_name if slope is not None},
        )


def _add(onto: Tensor, terms: Sequence[Term], row: int, present: Mapping[str, Tensor], sign: float = 1.0) -> None:
    for term in terms:
        if term.factors[row]:
            onto.add_(present[term.source], alpha=sign * term.factors[row])


def _credit(by: dict[str, Tensor], term: Term, row: int, a: Tensor, b: Tensor, sign: float = 1.0) -> None:
    """The derivatives of <a, factor*b> by settings."""
    slopes = {name: sign * slope[row] for name, slope in term.slopes.items() if slope[row]}
    if slopes:
        product = torch.dot(a, b)
        for name, slope in slopes.items():
            by[name] = by[name] + slope * product if name in by else slope * product
