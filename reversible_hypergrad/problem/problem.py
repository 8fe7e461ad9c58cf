"""A training run before it runs, and the gradients by everything that goes into it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reversible_hypergrad.problem.gradient import Gradient
from reversible_hypergrad.problem.report import Report
from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.problem.sums import Sums

if TYPE_CHECKING:  # rules stand on this room, not beneath it
    from reversible_hypergrad.readouts import Readouts
    from reversible_hypergrad.rules.base import Rule

__all__ = ["Cotangents", "Downstream", "Problem"]


@dataclass
class Problem:
    """A training run before it runs. ``weights`` are written in place; their first values are the initial weights."""

    names: list[str]
    weights: list[Tensor]
    rule: "Rule"  # which may be made of several, each for some of the weights
    settings: list[Settings]  # of the rule, one mapping per weight
    steps: range  # from 0, unless the run continues another one
    gradient: Gradient
    sources: list[Tensor]  # the tensors given to the optimizer, detached
    hyperparameters: list[Tensor]  # those that want gradients, detached
    report: Report
    progress: Callable[[str, int], Any]  # a bar, or something that looks like one
    given: Sequence[int] = ()  # weights whose initial values were given as tensors that require grad
    states: Sequence[Mapping[str, Tensor]] = ()  # first states, per weight; those left out are zero
    wanted_states: Sequence[tuple[int, str]] = ()  # those of the first states that require grad
    readouts: "Readouts | None" = None
    sees_start: bool = True  # whether readouts look at the first weights, too: not if another part of the run has
    exact: Any = None  # the integers that weights and states come from, if a run in fixed point is continued
    # What all of these were made of, attached: initial weights, first states that are wanted, sources, hyperparameters, and the
    # inputs of readouts.
    inputs: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        self._rules = self.rule.by_name(self.names)
        self.states = self.states or [{} for _ in self.names]

    @property
    def rules(self) -> "list[Rule]":
        """Each once: ``rule`` itself, or those that it is made of."""
        return list({id(rule): rule for rule in self._rules}.values())

    def rule_of(self, i: int) -> "Rule":
        """Of one weight."""
        return self._rules[i]

    def per_weight(self, number: "Callable[[Rule], int]") -> float:
        """What ``number`` is of a weight's rule; the mean, where they differ."""
        count = sum(weight.numel() for weight in self.weights)
        total = sum(number(rule) * weight.numel() for rule, weight in zip(self._rules, self.weights, strict=True))
        return total / max(count, 1)

    def under(self, rule: "Rule") -> "Problem":
        """The same run, as those of its weights see it that are under ``rule``."""
        return replace(self, rule=rule)

    def irreversible(self) -> str | None:
        """Why the run cannot be undone; None if it can."""
        reasons = (
            rule.irreversible([own for i, own in enumerate(self.settings) if self._rules[i] is rule]) for rule in self.rules
        )
        return next((reason for reason in reasons if reason is not None), None)


@dataclass
class Downstream:
    """Gradients of one loss downstream, by everything that a run gave out. None, or what is left out, stands for zero."""

    weights: Sequence[Tensor | None]
    states: Sequence[Mapping[str, Tensor]] = ()  # per weight
    readouts: Sequence[Tensor | None] = ()  # by the outputs of all readouts

    def plus(self, other: "Downstream") -> "Downstream":
        """Of the sum of two losses."""

        def both(one: Tensor | None, another: Tensor | None) -> Tensor | None:
            return another if one is None else one if another is None else one + another

        states = []
        for i in range(len(self.weights)):
            mine, theirs = self.states_of(i), other.states_of(i)
            sums = {name: both(mine.get(name), theirs.get(name)) for name in {**mine, **theirs}}
            states.append({name: by for name, by in sums.items() if by is not None})
        return Downstream(
            [both(a, b) for a, b in zip(self.weights, other.weights, strict=True)],
            states,
            [both(a, b) for a, b in zip(self.readouts, other.readouts, strict=True)],
        )

    def states_of(self, i: int) -> Mapping[str, Tensor]:
        """Of one weight."""
        return self.states[i] if self.states else {}


class Cotangents:
    """Gradients of one loss downstream, by everything that went into a run: zeros, to which a walk back adds.

    Those by the optimizer's tensors run where the weights are: a learning rate may well live on the CPU beside a model on a GPU,
    and bringing a term over would wait for every step.

    Attributes:
        initial: by the initial weights; None where a strategy does not give one.
        states: by the first states, per weight.
        sources: by the tensors given to the optimizer.
        readouts: by the coefficients of readouts.
    """

    def __init__(self, problem: Problem) -> None:
        places: dict[int, torch.device] = {}
        for settings, weight in zip(problem.settings, problem.weights, strict=True):
            for setting in settings.values():
                if setting.source is not None:
                    places.setdefault(setting.source, weight.device)
        self.initial: list[Tensor | None] = []
        self.states: list[dict[str, Tensor]] = [{} for _ in problem.weights]
        self.sources = [
            torch.zeros(t.shape, dtype=torch.float64, device=places.get(i, t.device)) for i, t in enumerate(problem.sources)
        ]
        self.readouts = [] if problem.readouts is None else problem.readouts.zeros()
        self._hyperparameters = Sums(problem.hyperparameters)

    @property
    def hyperparameters(self) -> list[Tensor]:
        """By the loss's hyperparameters."""
        return self._hyperparameters.totals

    def add_hyperparameters(self, products: Sequence[Tensor | None]) -> None:
        self._hyperparameters.add(products)

    def add(self, other: "Cotangents") -> None:
        """Those of a part of the run; what goes on through its beginning is left out."""
        for mine, theirs in (
            (self.sources, other.sources),
            (self.hyperparameters, other.hyperparameters),
            (self.readouts, other.readouts),
        ):
            for total, one in zip(mine, theirs, strict=True):
                total += one
