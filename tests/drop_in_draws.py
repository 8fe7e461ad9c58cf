"""Random configurations of the drop-in optimizers, by seed: shapes, dtypes, settings and gradients."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Draws"]

Drawn = dict[str, Any]
DTYPES = (torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (0,), (1,), (5,), (17,), (3, 4), (4, 0, 2), (2, 3, 2), (2, 3, 2, 2))
MATRICES = ((1, 1), (3, 4), (5, 2), (4, 4), (2, 5))


class Draws:
    """What one journey is made of. Two with the same name and seed draw the same.

    Args:
        name: of the optimizer, without "Reversible".
        seed: of the journey.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.random = name, random.Random(f"{name} {seed}")
        self._generator = torch.Generator().manual_seed(self.random.getrandbits(60))
        self.dtypes = DTYPES if self.random.random() < 0.5 else (self.random.choice(DTYPES),)
        self.options = OPTIONS[name](self)

    def log(self, low: float, high: float) -> float:
        return 10 ** self.random.uniform(math.log10(low), math.log10(high))

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def settings(self) -> Drawn:
        """Those that may change from step to step."""
        drawn = SETTINGS[self.name](self)
        drawn["lr"] = 0.0 if self.maybe(0.03) else drawn["lr"]
        if self.maybe(0.15):
            drawn["lr"] = torch.tensor(drawn["lr"], dtype=self.random.choice((torch.float32, torch.float64)))
        return drawn

    def parameters(self, count: int) -> list[nn.Parameter]:
        return [nn.Parameter(self._parameter()) for _ in range(count)]

    def _parameter(self) -> Tensor:
        dtype = self.random.choice(self.dtypes)
        shape = self.random.choice(MATRICES if self.name == "Muon" else SHAPES)
        size = self.random.choice((1.0, 1.0, 1.0, 0.0, 1e-3, 30.0))
        values = (size * self._normal(shape)).to(dtype)
        if len(shape) == 4 and self.maybe(0.5):
            return values.contiguous(memory_format=torch.channels_last)
        if len(shape) >= 2 and self.maybe(0.4):
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        return values

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """None, or one of any size and layout that is finite in the parameter's dtype."""
        kind = self.random.choices(
            ("normal", "none", "zero", "sprinkled", "huge", "tiny", "extreme", "constant"), (60, 9, 6, 8, 4, 6, 1, 6)
        )[0]
        if kind == "none":
            return None
        values = self._normal(tuple(parameter.shape)) * {
            "zero": 0.0,
            "huge": self.log(1e2, 1e6),
            "tiny": self.log(1e-12, 1e-3),
            "extreme": self.random.choice((1e-42, 1e-30, 1e12, 1e18)),
        }.get(kind, self.random.choice((1.0, 0.1)))
        if kind == "sprinkled":
            values = values * (self._normal(tuple(parameter.shape)) > 0)
        largest = 0.9 * torch.finfo(parameter.dtype).max
        values = values.clamp(-largest, largest).to(parameter.dtype)
        if kind == "constant" and values.numel():
            return values.flatten()[0].expand(values.shape)
        return self._laid_out(values)

    def _laid_out(self, values: Tensor) -> Tensor:
        if values.dim() >= 2 and self.maybe(0.2):
            return values.transpose(0, 1).contiguous().transpose(0, 1)
        if self.maybe(0.1):
            return torch.stack([values, torch.full_like(values, 7.0)], -1)[..., 0]
        return values


def _betas(draws: Draws) -> tuple[float, float]:
    first = draws.random.choice((0.9, draws.random.uniform(0.05, 0.99), 2.0**-16))
    return first, draws.random.choice((0.999, draws.random.uniform(0.5, 0.9999), 2.0**-16))


def _decay(draws: Draws) -> float:
    return draws.random.choice((0.0, draws.random.uniform(0.0, 0.3)))


def _sgd(draws: Draws) -> Drawn:
    momentum = draws.random.choice((0.9, 1.0, 2.0**-16, draws.random.uniform(0.2, 0.999)))
    dampening = draws.random.choice((0.0, draws.random.uniform(-0.5, 0.9)))
    drawn = {"lr": draws.log(1e-4, 0.5), "momentum": momentum, "dampening": dampening, "weight_decay": _decay(draws)}
    return {**drawn, "maximize": draws.maybe(0.2)}


def _traced(draws: Draws) -> Drawn:
    momentum = draws.random.uniform(0.2, 0.99) if draws.options["nesterov"] else 0.0
    return {"lr": draws.log(1e-4, 0.5), "momentum": momentum, "weight_decay": _decay(draws)}


def _radam(draws: Draws) -> Drawn:
    drawn = {"lr": draws.log(1e-4, 0.1), "betas": _betas(draws), "eps": draws.log(1e-9, 1e-3)}
    return {**drawn, "weight_decay": _decay(draws)}


def _adam(draws: Draws) -> Drawn:
    return {**_radam(draws), "maximize": draws.maybe(0.2)}


def _rmsprop(draws: Draws) -> Drawn:
    drawn = {"lr": draws.log(1e-4, 0.1), "alpha": _betas(draws)[1], "eps": draws.log(1e-9, 1e-3)}
    return {**drawn, "weight_decay": _decay(draws), "momentum": draws.random.choice((0.9, 1.0, draws.random.uniform(0.05, 1)))}


def _lion(draws: Draws) -> Drawn:
    first = draws.random.choice((0.0, 0.9, draws.random.uniform(0, 0.99)))
    return {"lr": draws.log(1e-4, 0.1), "betas": (first, _betas(draws)[1]), "weight_decay": _decay(draws)}


def _muon(draws: Draws) -> Drawn:
    momentum = draws.random.choice((0.95, 2.0**-16, draws.random.uniform(0.1, 0.99)))
    return {"lr": draws.log(1e-4, 0.1), "momentum": momentum, "weight_decay": _decay(draws)}


def _no_options(draws: Draws) -> Drawn:
    return {}


# What an optimizer is constructed with, the same for all groups.
OPTIONS: dict[str, Callable[[Draws], Drawn]] = {
    "SGD": _no_options,
    "TracedSGD": lambda d: {"nesterov": d.maybe(0.5), "trace_bits": d.random.choice((1, 4, 16))},
    "Adam": _no_options,
    "AdamW": _no_options,
    "RAdam": lambda d: {"decoupled_weight_decay": d.maybe(0.5)},
    "RMSprop": lambda d: {"centered": d.maybe(0.4)},
    "Lion": _no_options,
    "Muon": lambda d: {
        "nesterov": d.maybe(0.4),
        "trace_bits": d.random.choice((1, 4, 9)),
        "ns_steps": d.random.choice((1, 5, 6)),
        "adjust_lr_fn": d.random.choice((None, "original", "match_rms_adamw")),
        "ns_dtype": torch.float64,
    },
}
SETTINGS: dict[str, Callable[[Draws], Drawn]] = {
    "SGD": _sgd,
    "TracedSGD": _traced,
    "Adam": _adam,
    "AdamW": _adam,
    "RAdam": _radam,
    "RMSprop": _rmsprop,
    "Lion": _lion,
    "Muon": _muon,
}
