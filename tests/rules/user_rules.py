"""Rules as users write them, and all rules' steps once more, in plain torch, as the tests' reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import reversible_hypergrad as rh
from reversible_hypergrad.rules import SettingSpec, root


class RMSprop(rh.Rule):
    states = {"s": 2, "b": 0}  # noqa: RUF012
    settings = {  # noqa: RUF012
        "lr": SettingSpec(0.01, per_weight=True),
        "alpha": SettingSpec(0.99, high=1.0),
        "momentum": SettingSpec(0.9, high=1.0),
        "eps": SettingSpec(1e-8),
        "weight_decay": SettingSpec(0.0, per_weight=True),
    }
    elementwise = True

    def decay(self, h, t):
        return {"s": h.alpha, "b": h.momentum}

    def increments(self, h, t, g, w, z):
        g = g + h.weight_decay * w
        yield "s", (1 - h.alpha) * g * g
        yield "b", g / (root(z["s"]) + h.eps)

    def update(self, h, t, z, logged):
        return h.lr * z["b"]


class AdamW(rh.Rule):
    """Looks at the step, and its weights decay by themselves."""

    states = {"m": 1, "s": 2}  # noqa: RUF012
    settings = {  # noqa: RUF012
        "lr": SettingSpec(1e-3),
        "beta1": SettingSpec(0.9, high=1.0),
        "beta2": SettingSpec(0.999, high=1.0),
        "eps": SettingSpec(1e-8),
        "weight_decay": SettingSpec(0.01),
    }
    elementwise = True

    def decay(self, h, t):
        return {"m": h.beta1, "s": h.beta2, "weight": 1 - h.lr * h.weight_decay}

    def increments(self, h, t, g, w, z):
        yield "m", (1 - h.beta1) * g
        yield "s", (1 - h.beta2) * g * g

    def update(self, h, t, z, logged):
        m, s = z["m"] / (1 - h.beta1 ** (t + 1)), z["s"] / (1 - h.beta2 ** (t + 1))
        return h.lr * m / (root(s) + h.eps)


class Scaled(rh.Rule):
    """Not elementwise: a tensor's gradient counts relative to its norm, and the update by the norm of the old weights."""

    states = {"v": 0}  # noqa: RUF012
    settings = {  # noqa: RUF012
        "lr": SettingSpec(per_weight=True),
        "momentum": SettingSpec(0.9, high=1.0),
        "weight_decay": SettingSpec(0.0, per_weight=True),
    }

    def decay(self, h, t):
        return {"v": h.momentum}

    def increments(self, h, t, g, w, z):
        yield "v", g / (g.norm() + 0.1) + h.weight_decay * w

    def logged(self, h, t, w, z):
        return 0.5 + w.norm()

    def update(self, h, t, z, logged):
        return h.lr * logged * z["v"]


@dataclass
class Case:
    """One rule.

    Attributes:
        make: the rule's class.
        settings: the values to learn at.
        step: (settings, t, g, w, z) -> new w and z, written from the papers, not from the library.
        states: of the reference, by name.
        per_weight: the settings that may have one value per weight.
        options: more arguments of the rule.
        by_torch: the same in torch.optim, if it has it.
        without_effect: the settings whose derivative is 0.
        matrices: whether the rule is for these alone.
        reversible: whether its steps can be undone.
    """

    make: Any
    settings: dict[str, float]
    step: Any
    states: tuple[str, ...]
    per_weight: tuple[str, ...] = ("lr", "weight_decay")
    options: dict[str, Any] | None = None
    by_torch: Any = None
    without_effect: tuple[str, ...] = ()
    matrices: bool = False
    reversible: bool = True

    def rule(self, **settings):
        return self.make(**{**self.settings, **settings}, **(self.options or {}))


def sgd(s, t, g, w, z):
    g = g + s["weight_decay"] * w
    z = {"v": g if t == 0 else s["momentum"] * z["v"] + (1 - s["dampening"]) * g}
    return w - s["lr"] * z["v"], z


def nesterov(s, t, g, w, z):
    g = g + s["weight_decay"] * w
    z = {"v": s["momentum"] * z["v"] + g}
    return w - s["lr"] * (g + s["momentum"] * z["v"]), z


def traced(bits):
    def step(s, t, g, w, z):
        z = {"p": z["p"] / 2**bits + (g + s["weight_decay"] * w) * (1 - 2.0**-bits)}
        return w - s["lr"] * z["p"], z

    return step


def traced_nesterov(bits):
    def step(s, t, g, w, z):
        g = g + s["weight_decay"] * w
        z = {"p": z["p"] / 2**bits + g * (1 - 2.0**-bits), "v": s["momentum"] * z["v"] + g}
        return w - s["lr"] * (z["p"] + s["momentum"] * z["v"]), z

    return step


def guarded_root(s):
    """Its derivative is 0 where s is 0."""
    return (s + (s == 0).to(s)).sqrt() * (s != 0).to(s)


def rmsprop(s, t, g, w, z):
    g = g + s["weight_decay"] * w
    square = s["alpha"] * z["s"] + (1 - s["alpha"]) * g**2
    b = s["momentum"] * z["b"] + g / (guarded_root(square) + s["eps"])
    return w - s["lr"] * b, {"s": square, "b": b}


def adamw(s, t, g, w, z):
    w = w - s["lr"] * s["weight_decay"] * w
    m = s["beta1"] * z["m"] + (1 - s["beta1"]) * g
    square = s["beta2"] * z["s"] + (1 - s["beta2"]) * g**2
    corrected = square / (1 - s["beta2"] ** (t + 1))
    return w - s["lr"] * m / (1 - s["beta1"] ** (t + 1)) / (guarded_root(corrected) + s["eps"]), {"m": m, "s": square}


def scaled(s, t, g, w, z):
    v = s["momentum"] * z["v"] + g / (g.square().sum().sqrt() + 0.1) + s["weight_decay"] * w
    return w - s["lr"] * (0.5 + w.square().sum().sqrt()) * v, {"v": v}


SGD = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}

CASES = {
    "SGD": Case(rh.SGD, {**SGD, "dampening": 0.2}, sgd, ("v",), by_torch=torch.optim.SGD),
    "Nesterov": Case(
        rh.SGD, SGD, nesterov, ("v",), options={"nesterov": True}, by_torch=torch.optim.SGD,
        reversible=False,
    ),
    "traced": Case(rh.TracedSGD, {"lr": 0.1, "weight_decay": 0.02}, traced(4), ("p",)),
    "traced Nesterov": Case(
        rh.TracedSGD, SGD, traced_nesterov(3), ("p", "v"), options={"nesterov": True, "trace_bits": 3}
    ),
    "RMSprop": Case(
        RMSprop,
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.7, "eps": 1e-3, "weight_decay": 0.02},
        rmsprop,
        ("s", "b"),
        by_torch=torch.optim.RMSprop,
    ),
    "AdamW": Case(
        AdamW, {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}, adamw, ("m", "s"), ()
    ),
    "Scaled": Case(Scaled, {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.05}, scaled, ("v",)),
}  # fmt: skip
