"""Random calls of ``train``, by seed: everything that goes in, in a form that a textbook's unroll can read, too."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any, NamedTuple

import torch
from drawn_models import ACTIVATIONS, EXAMPLES, MODELS, loss_of, task
from drawn_settings import DrawnRule, Value, draw_rule
from drawn_strategies import draw_strategy, forward_only, undoes
from textbook_rules import RULES, STATES
from torch import Tensor

__all__ = ["DrawnRun", "Part"]


class Part(NamedTuple):
    """One call of ``train``."""

    first: int
    stop: int
    strategy: Any
    readouts: dict[str, tuple[Any, ...]]


class DrawnRun:
    """A run in one to three parts. Two of the same seed are the same, with tensors of their own.

    Attributes:
        leaves: by label, all tensors that a gradient is asked for.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"run {seed}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))
        self.leaves: dict[str, Tensor] = {}
        self.model_name = self.random.choice(list(MODELS))
        self.task = task(self.model_name, self.random.choice(ACTIVATIONS), self.generator, self.maybe(0.15))
        self.drops = self.maybe(0.2)
        self.loss = loss_of(self.task, self.maybe(0.6), self.drops)
        self.trained = {n: p for n, p in self.task.model.named_parameters() if p.requires_grad}
        self.begin = self.random.randint(1, 5) if self.maybe(0.15) else 0
        self.end = self.begin + self.random.randint(1, 15)
        self._draw_batches()
        self.rules = self._rules()
        self._draw_clip()
        self.hyperparameters = self._hyperparameters()
        self.parts = self._parts()
        self._draw_start()
        self.check_derivatives = self.random.choice((True, False, False, 1, 2))
        self.seed = self.random.randint(0, 9)
        self.losses = self.random.choice((1, 1, 2, 3))
        self.way = self.random.choice(("hypergradients", "hypergradients", "grad", "backward"))
        self.at_a_time = self.random.choice((None, None, 1, 2))
        if not any(forward_only(part.strategy) for part in self.parts):
            self.leaves.update({f"model.{n}": p for n, p in self.trained.items()})

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def log(self, low: float, high: float) -> float:
        return math.exp(self.random.uniform(math.log(low), math.log(high)))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def learned(self, label: str, values: Tensor, chance: float = 0.6) -> Tensor:
        """The values, maybe as a leaf or made from one."""
        if not self.maybe(chance):
            return values
        if self.maybe(0.4) and bool((values > 0).all()):
            self.leaves[label] = values.log().requires_grad_()
            return self.leaves[label].exp()
        self.leaves[label] = values.clone().requires_grad_()
        return self.leaves[label]

    def _draw_batches(self) -> None:
        """``micro`` is one list per step, from step 0 on, of the indices of each micro-batch."""
        self.accumulate = self.random.choice((1, 1, 1, 2, 3))
        self.lists_micro_batches = self.accumulate == 1 and self.maybe(0.2)
        self.batches_are_list = self.maybe(0.5)
        self.micro: list[list[Tensor]] = []
        for _ in range(self.end):
            count = self.random.randint(1, 4) if self.lists_micro_batches else self.accumulate
            size = self.random.randint(2, 4)
            sizes = [self.random.randint(2, 4) if self.lists_micro_batches else size for _ in range(count)]
            self.micro.append([torch.randint(0, EXAMPLES, (n,), generator=self.generator) for n in sizes])

    def _rules(self) -> dict[str | None, DrawnRule]:
        """By key of a PerParameter; None: one rule for all."""
        shapes = {n: tuple(p.shape) for n, p in self.trained.items()}
        others = [name for name in RULES if name != "Muon"]
        if self.maybe(0.7):
            return {None: draw_rule(self, self.random.choice(others), shapes, self.end)}
        matrices = {n: shape for n, shape in shapes.items() if len(shape) == 2}
        own = {n: matrices[n] for n in list(matrices)[: self.random.randint(1, 2)]}
        rest = {n: shape for n, shape in shapes.items() if n not in own}
        if not own:
            return {None: draw_rule(self, self.random.choice(others), shapes, self.end)}
        one = draw_rule(self, "Muon" if self.maybe(0.6) else self.random.choice(others), own, self.end)
        return {**dict.fromkeys(own, one), "*": draw_rule(self, self.random.choice(others), rest, self.end)}

    def rule_of(self, name: str) -> DrawnRule:
        return self.rules[None] if None in self.rules else self.rules.get(name, self.rules.get("*"))

    def _draw_clip(self) -> None:
        self.clip, self.clip_limit = self.random.choice((None, None, None, 2.0, math.inf, "value")), None
        if self.clip is not None:
            kind = self.random.choice(("number", "one", "steps"))
            low, high = (0.01, 0.3) if self.clip == "value" else (0.05, 1.0)
            numbers = torch.tensor([self.log(low, high) for _ in range(self.end)], dtype=torch.float64)
            given = numbers if kind == "steps" else numbers[0].clone()
            self.clip_limit = Value(float(given) if kind == "number" else self.learned("clip", given), kind)

    def _hyperparameters(self) -> dict[str, Any] | None:
        if self.maybe(0.15):
            return None
        h: dict[str, Any] = {}
        if self.maybe(0.6):
            h["l2"] = self.learned("l2", torch.tensor(-4.0, dtype=torch.float64), 0.8)
            if self.maybe(0.5):
                chosen = [n for n in self.trained if self.maybe(0.7)]
                shapes = {n: tuple(self.trained[n].shape) if self.maybe(0.5) else () for n in chosen}
                h["l2"] = {n: self.learned(f"l2[{n}]", self.normal(*shape) - 4.0, 0.8) for n, shape in shapes.items()}
        if self.maybe(0.4):
            h["example"] = self.learned("example", self.normal(EXAMPLES), 0.8)
        if self.maybe(0.3):
            h["scale"] = [self.learned("scale", 1.0 + 0.1 * self.normal(), 0.8)]
        if self.maybe(0.3) and self.task.x.is_floating_point():
            h["shift"] = self.learned("shift", 0.1 * self.normal(*self.task.x.shape), 0.8)
        h["rest"] = (self.learned("unused", self.normal(2), 0.3), torch.arange(3))
        return h

    def _parts(self) -> list[Part]:
        steps = self.end - self.begin
        count = min(self.random.choice((1, 1, 2, 3)), steps)
        cuts = sorted(self.random.sample(range(self.begin + 1, self.end), count - 1))
        few = sum(leaf.numel() for leaf in self.leaves.values()) <= 40
        undone = not any(rule.irreversible(self.begin, self.end) for rule in self.rules.values()) or self.maybe(0.2)
        strategies = [draw_strategy(self, steps, few and count == 1, undone)] * count
        if self.maybe(0.3):
            strategies = [draw_strategy(self, steps, few and count == 1, undone) for _ in range(count)]
        spans = itertools.pairwise([self.begin, *cuts, self.end])
        return [Part(a, b, s, self._readouts(k, a, b)) for k, ((a, b), s) in enumerate(zip(spans, strategies, strict=True))]

    def _readouts(self, k: int, first: int, stop: int) -> dict[str, tuple[Any, ...]]:
        drawn: dict[str, tuple[Any, ...]] = {}

        def moments() -> list[int]:
            return sorted(self.random.sample(range(first, stop + 1), self.random.randint(1, min(3, stop + 1 - first))))

        if self.maybe(0.25):
            drawn["weights at"] = ("WeightsAt", moments())
        if self.maybe(0.25):
            decay = torch.rand(stop - first, generator=self.generator, dtype=torch.float64)
            decay = decay if self.maybe(0.4) else decay[0].clone()
            drawn["average"] = ("ExponentialAverage", self.learned(f"decay {k}", decay))
        if self.maybe(0.2):
            drawn["mean"] = ("UniformAverage", self.random.randint(first, stop), self.random.randint(1, 3))
        if self.maybe(0.25):
            drawn["losses"] = ("LossAt", moments(), self.maybe(0.5))
        return drawn

    def validation_batch(self, taken: int) -> dict[str, Any]:
        return {"i": torch.arange(taken % 5, EXAMPLES, 3), "t": taken}

    def _draw_start(self) -> None:
        """First weights, and what replaces the zero states."""
        self.initial: dict[str, Tensor] = {}
        self.states: dict[str, dict[str, Tensor]] = {}
        if self.maybe(0.4):
            scale = self.learned("scales", torch.tensor(1.1, dtype=torch.float64), 0.5)
            for name, p in self.trained.items():
                if self.maybe(0.6):
                    own = self.learned(f"initial[{name}]", 0.5 * self.normal(*p.shape), 0.6)
                    self.initial[name] = own * scale if self.maybe(0.5) else own
        self.initial_in_start = self.maybe(0.5)
        if self.maybe(0.25):
            for name, p in self.trained.items():
                rule = self.rule_of(name)
                for state, power in STATES[rule.name].items():
                    if self.maybe(0.5) and has_state(rule, state):
                        values = 0.1 * self.normal(*p.shape)
                        values = values.square() + 0.01 if power == 2 else values * (0.1 if state == "a" else 1.0)
                        self.states.setdefault(name, {})[state] = self.learned(f"{state} of {name}", values)

    def refusals(self) -> list[str]:
        """What errors may say; empty: there must be none."""
        expected = []
        rules = {id(rule): rule for rule in self.rules.values()}.values()
        if any(rule.has_no_common_decay() for rule in rules):
            expected.append(r"weight_decay: expected 0 for '[\w.]+', whose learning rate has a value per weight")
        undone = [part for part in self.parts if undoes(part.strategy)]
        if any(rule.irreversible(part.first, part.stop) for part in undone for rule in rules):
            expected += [
                r"momentum: rh\.Reversible\(\) expected numbers in \(0, 1\], got 0.* adjoint=rh\.Checkpoint\(\)",
                r"nesterov: rh\.Reversible\(\) cannot undo a Nesterov step.* adjoint=rh\.Checkpoint\(\)",
                r"optimizer: rh\.Reversible\(\) expected \w+ to decay '\w+' by a factor .* Use adjoint=rh\.Checkpoint\(\)",
                r"weight_decay: rh\.Reversible\(\) expected 0 with rh\.LAMB.* or use adjoint=rh\.Checkpoint\(\)",
            ]
        return expected


def has_state(rule: DrawnRule, state: str) -> bool:
    if rule.name == "RMSprop" and state == "a":
        return rule.options["centered"]
    needs_nesterov = {"TracedSGD": "v", "Muon": "p"}.get(rule.name) == state
    return rule.options["nesterov"] if needs_nesterov else True
