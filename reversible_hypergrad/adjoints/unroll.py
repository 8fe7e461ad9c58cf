"""Autograd's graph through the whole run."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.attached_readouts import AttachedReadouts
from reversible_hypergrad.adjoints.base import CAUSES, Adjoint, End, Run
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.problem.setting import Setting, Settings
from reversible_hypergrad.rules.base import Rule
from reversible_hypergrad.rules.step import step as step_of

__all__ = ["Unroll"]


class Unroll(Adjoint):
    """Keeps autograd's graph of the whole run. Exact; also known as backpropagation through training.

    Momentum 0 and Nesterov are allowed.

    Cost: all activations of all steps, twice over for the gradients' graphs. Backward does not compute the loss again.
    A loss that moves floating-point buffers is evaluated once more in each step, to see whether it reads them.

    *Recommended* as an oracle: autograd goes through all of it at once. *Not recommended* otherwise, because
    :class:`Snapshots` is as exact, takes a fraction of the memory and is as fast or faster.

    >>> import reversible_hypergrad as rh
    >>> rh.Unroll()
    Unroll()

    Source: Domke, *Generic Methods for Optimization-Based Modeling*, AISTATS 2012; Grefenstette et al., *Generalized Inner Loop
    Meta-Learning*, 2019.
    """

    graphable = False

    def __repr__(self) -> str:
        return "Unroll()"

    def start(self, problem: Problem) -> Run:
        return UnrollRun(problem)


class UnrollRun(Run):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        problem.gradient.expect_no_replay()
        self.begin = [weight.detach().clone() for weight in problem.weights]
        self._leaves: dict[Setting, Tensor] = {}
        self._initial: list[Tensor] = []
        self._first_states: list[dict[str, Tensor]] = []
        self._trained: list[Tensor] = []
        self._states: list[dict[str, Tensor]] = []
        self._readouts = AttachedReadouts(problem)
        self._losses: list[float] | None = None  # of the run whose weights went out
        self._undone = False

    def forward(self, record: bool) -> None:
        problem = self.problem
        weights = [start.clone().requires_grad_() for start in self.begin]
        self._leaves, self._initial = {}, weights
        self._first_states = [self._states_of(i, w) for i, w in enumerate(weights)]
        states = [dict(own) for own in self._first_states]
        losses: list[float] = []
        self._readouts.begin(weights, record)
        with torch.enable_grad(), problem.progress("training", len(problem.steps)) as bar:
            for step in problem.steps:
                loss, gradients = problem.gradient.attached(problem.gradient.batch(step), weights)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(f"step {step}: the loss is {losses[-1]}, expected a finite number. Lower lr")
                weights = self._step(step, weights, states, gradients)
                if not record:
                    weights = [w.detach().requires_grad_() for w in weights]
                    states = [{name: z.detach() for name, z in own.items()} for own in states]
                self._readouts.see(step + 1, weights)
                bar.advance()
        self._compare(losses)
        for own, w in zip(problem.weights, weights, strict=True):
            own.data.copy_(w.detach())
        self._readouts.publish()
        self._trained, self._undone, self._states = weights if record else [], False, states

    def _states_of(self, i: int, weight: Tensor) -> dict[str, Tensor]:
        given = self.problem.states[i]
        return {
            name: given[name].detach().to(weight.dtype, copy=True).requires_grad_() if name in given else torch.zeros_like(weight)
            for name in self.problem.rule_of(i).states
        }

    def _compare(self, losses: list[float]) -> None:
        if self._losses is None:
            self._losses = losses
        if losses != self._losses:
            place = next(i for i, (a, b) in enumerate(zip(losses, self._losses, strict=True)) if a != b)
            raise ReversalError(
                "training once more, for a second backward, did not end at the same weights: the loss of step "
                f"{self.problem.steps[place]} was {self._losses[place]:.9g} and is {losses[place]:.9g} now, and no gradient has "
                f"been changed. {CAUSES}"
            )

    def end(self) -> End | None:
        if self._undone or not self._states:
            return None
        return End([{name: z.detach().clone() for name, z in own.items()} for own in self._states])

    def _step(
        self, t: int, weights: Sequence[Tensor], states: list[dict[str, Tensor]], gradients: Sequence[Tensor | None]
    ) -> list[Tensor]:
        after = []
        for i, (w, g, settings) in enumerate(zip(weights, gradients, self.problem.settings, strict=True)):
            rule = self.problem.rule_of(i)
            h = self._h(rule, settings, t, w)
            new, z = step_of(rule, h, t, torch.zeros_like(w) if g is None else g, w, states[i])
            # Settings per weight may have more digits than the weights.
            states[i] = {name: state.to(w.dtype) for name, state in z.items()}
            after.append(new.to(w.dtype))
        return after

    def _h(self, rule: Rule, settings: Settings, t: int, weight: Tensor) -> Any:
        return rule.at(settings, t, lambda _, setting: self._value(setting, t, weight))

    def _value(self, setting: Setting, step: int, weight: Tensor) -> Tensor | float:
        """One setting at one step, attached to a leaf of its own if it wants a gradient."""
        if setting.source is None:
            return setting.at(step) if setting.elementwise is None else _shaped(setting.elementwise, weight)
        if setting not in self._leaves:
            numbers = setting.elementwise
            if numbers is None:
                numbers = torch.tensor(list(setting.numbers), dtype=torch.float64, device=weight.device)
            self._leaves[setting] = numbers.detach().clone().requires_grad_()
        leaf = self._leaves[setting]
        if setting.elementwise is not None:
            return _shaped(leaf, weight)
        return leaf[step - setting.first if len(leaf) > 1 else 0]

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        problem = self.problem
        if self._undone or not self._trained:
            problem.gradient.restart()
            self.forward(record=True)
        self._undone = True
        found = [self._differentiate(one, last=one is downstream[-1]) for one in downstream]
        self._trained, self._states = [], []
        problem.report.restored = True
        for own, start in zip(problem.weights, self.begin, strict=True):
            own.data.copy_(start)
        return found

    def _differentiate(self, downstream: Downstream, last: bool) -> Cotangents:
        problem = self.problem
        pairs = [(w, c) for w, c in zip(self._trained, downstream.weights, strict=True) if c is not None]
        for i, own in enumerate(self._states):
            pairs += [
                (own[name], c.to(own[name].dtype)) for name, c in downstream.states_of(i).items() if own[name].requires_grad
            ]
        pairs += [
            (out, c)
            for out, c in zip(self._readouts.outputs, downstream.readouts, strict=False)
            if c is not None and out.requires_grad
        ]
        totals = Cotangents(problem)
        firsts = [(i, name, z) for i, own in enumerate(self._first_states) for name, z in own.items() if z.requires_grad]
        groups = [self._initial, list(self._leaves.values()), problem.gradient.wanted, self._readouts.leaves]
        inputs = [*(tensor for group in groups for tensor in group), *(z for _, _, z in firsts)]
        tensors, cotangents = [w for w, _ in pairs], [c for _, c in pairs]
        found = list(torch.autograd.grad(tensors, inputs, cotangents, allow_unused=True, retain_graph=not last))
        by_initial, by_settings, by_wanted, by_readouts = ([found.pop(0) for _ in group] for group in groups)
        totals.initial = [torch.zeros_like(w) if g is None else g for w, g in zip(self._initial, by_initial, strict=True)]
        self._add_settings(totals, by_settings)
        totals.add_hyperparameters(by_wanted)
        for total, g in zip(totals.readouts, by_readouts, strict=True):
            if g is not None:
                total += g.to(total.device)
        for (i, name, z), g in zip(firsts, found, strict=True):
            totals.states[i][name] = torch.zeros_like(z) if g is None else g
        return totals

    def _add_settings(self, totals: Cotangents, by_settings: Sequence[Tensor | None]) -> None:
        for setting, g in zip(self._leaves, by_settings, strict=True):
            if g is None:
                continue
            assert setting.source is not None
            if setting.elementwise is None:
                setting.accumulate_steps(totals.sources, setting.first, g)
                continue
            chosen = zip(self._initial, self.problem.settings, strict=True)
            g = _shaped(g, next(w for w, s in chosen if setting in s.values()))
            target = totals.sources[setting.source]
            target += g.reshape(target.shape).to(target.device)


def _shaped(flat: Tensor, weight: Tensor) -> Tensor:
    """A value per weight, from memory order."""
    return flat.as_strided(weight.shape, weight.stride())
