"""A drawn run in plain float64 autograd, its graph kept, from the textbook formulas; and the same with noise on every step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from drawn_runs import DrawnRun, Part, has_state
from textbook_rules import RULES, STATES
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Noise", "Results", "Unroll"]


class Results(SimpleNamespace):
    """What came out: ``weights``, ``states`` and ``buffers`` after the last part, and the ``readouts`` of each part."""


class Noise:
    """Moves weights, states and gradients by about ``unit`` of the largest element that they have had, zeros excepted.

    Args:
        unit: 0 for none.
        squares: the same for means of squares.
        seed: of the noise.
    """

    def __init__(self, unit: float, squares: float, seed: int = 0) -> None:
        self.unit, self.squares = unit, squares
        self._largest: dict[Any, float] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def on(self, key: Any, x: Tensor, power: int = 1, least: float = 0.0) -> Tensor:
        """Of ``x``, known by ``key``, which counts as no smaller than ``least``."""
        if not self.unit:
            return x
        size = x.detach().abs()
        largest = self._largest[key] = max(self._largest.get(key, least), float(size.max()))
        unit = self.squares if power == 2 else self.unit
        noise = unit * largest * torch.randn(x.shape, generator=self._generator, dtype=x.dtype)
        return x + torch.minimum(torch.maximum(noise, -size / 2), size / 2)


class Bound(nn.Module):
    """A model at given weights and buffers, whose buffers change in place."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        super().__init__()
        self._inner = [model]
        self._own = {**{n: p for n, p in model.named_parameters() if not p.requires_grad}, **weights}, buffers

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return iter(self._own[0].items())

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self._inner[0], {**self._own[0], **self._own[1]}, (x,))


class Unroll:
    """Call ``results()`` once."""

    def __init__(self, drawn: DrawnRun, noise: Noise) -> None:
        self.drawn, self.noise = drawn, noise
        first = {n: drawn.initial.get(n, p) for n, p in drawn.trained.items()}
        self.weights = {n: w if w.requires_grad else w.clone().requires_grad_() for n, w in first.items()}
        self.states = {
            n: {s: drawn.states.get(n, {}).get(s, torch.zeros_like(w)) for s in STATES[drawn.rule_of(n).name]}
            for n, w in self.weights.items()
        }
        self.buffers = {n: b.clone() for n, b in drawn.task.model.named_buffers()}

    def results(self) -> Results:
        # Initial weights are rounded, too; fixed point takes them for no smaller than an eighth of the largest.
        least = max(float(w.detach().abs().max()) for w in self.weights.values()) / 8
        self.weights = {n: self.noise.on((n, "weight"), w, least=least) for n, w in self.weights.items()}
        readouts = [self._part(part) for part in self.drawn.parts]
        kept = {n: {s: z for s, z in own.items() if has_state(self.drawn.rule_of(n), s)} for n, own in self.states.items()}
        return Results(weights=self.weights, states=kept, buffers=self.buffers, readouts=readouts)

    def _part(self, part: Part) -> dict[str, Any]:
        weights, losses = [self.weights], [self._losses(part, part.first)]
        for t in range(part.first, part.stop):
            self._step(t)
            weights.append(self.weights)
            losses.append(self._losses(part, t + 1))
        return {name: self._read(part, of, weights, losses) for name, of in part.readouts.items()}

    def _losses(self, part: Part, taken: int) -> Tensor | None:
        """The loss of a readout; buffers stay as they are."""
        for kind, *rest in part.readouts.values():
            if kind == "LossAt" and taken in rest[0]:
                model = Bound(self.drawn.task.model, self.weights, {n: b.clone() for n, b in self.buffers.items()})
                batch = self.drawn.validation_batch(taken if rest[1] else 0)
                return self.drawn.loss(model, batch, self.drawn.hyperparameters)
        return None

    @staticmethod
    def _read(part: Part, of: tuple[Any, ...], weights: list[dict[str, Tensor]], losses: list[Tensor | None]) -> Any:
        kind, *rest = of
        if kind == "WeightsAt":
            return [weights[taken - part.first] for taken in rest[0]]
        if kind == "LossAt":
            return torch.stack([loss for loss in losses if loss is not None])
        if kind == "UniformAverage":
            counted = weights[rest[0] - part.first :: rest[1]]
            return {n: sum(w[n] for w in counted) / len(counted) for n in counted[0]}
        decays, average = rest[0].expand(part.stop - part.first), dict(weights[0])
        for decay, after in zip(decays, weights[1:], strict=True):
            average = {n: decay * average[n] + (1 - decay) * w for n, w in after.items()}
        return average

    def _step(self, t: int) -> None:
        gradients = self._clipped(t, self._gradients(t))
        after = {}
        for (name, w), g in zip(self.weights.items(), gradients, strict=True):
            rule = self.drawn.rule_of(name)
            settings = {key: setting.of(name).at(t) for key, setting in rule.settings.items()}
            h = SimpleNamespace(**settings, **rule.options)
            z = self.states[name] = dict(self.states[name])
            after[name] = self.noise.on((name, "weight"), RULES[rule.name](h, t, self.noise.on((name, "g"), g), w, z))
            for state, power in STATES[rule.name].items():
                z[state] = self.noise.on((name, state), z[state], power)
        self.weights = after

    def _gradients(self, t: int) -> list[Tensor]:
        """The mean over micro-batches."""
        weights, micro = list(self.weights.values()), self.drawn.micro[t]
        total = [torch.zeros_like(w) for w in weights]
        for indices in micro:
            model = Bound(self.drawn.task.model, self.weights, self.buffers)
            value = self.drawn.loss(model, {"i": indices, "t": t}, self.drawn.hyperparameters)
            found = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
            total = [a if g is None else a + g / len(micro) for a, g in zip(total, found, strict=True)]
        return total

    def _clipped(self, t: int, gradients: list[Tensor]) -> list[Tensor]:
        kind = self.drawn.clip
        if kind is None:
            return gradients
        limit = torch.as_tensor(self.drawn.clip_limit.at(t), dtype=torch.float64)
        if kind == "value":
            return [torch.minimum(torch.maximum(g, -limit), limit) for g in gradients]
        flat = torch.cat([g.flatten() for g in gradients])
        norm = flat.abs().max() if kind == float("inf") else flat.square().sum().sqrt()
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        return [factor * g for g in gradients]
