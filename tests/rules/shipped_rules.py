"""The library's rules that are torch operations alone, and each one's step once more, from its paper, as the tests' reference."""

from __future__ import annotations

import torch
from rules.user_rules import CASES as OTHERS
from rules.user_rules import Case, adamw, guarded_root

import reversible_hypergrad as rh

NS = (3.4445, -4.7750, 2.0315)


def with_betas(make):
    """Of settings by name."""
    return lambda beta1, beta2, **others: make(betas=(beta1, beta2), **others)


def on_parameters(optimizer):
    """One of torch.optim, likewise."""
    return lambda parameters, beta1, beta2, **others: optimizer(parameters, betas=(beta1, beta2), **others)


def adam(s, t, g, w, z):
    return adamw({**s, "weight_decay": 0.0}, t, g + s["weight_decay"] * w, w, z)


def rmsprop(s, t, g, w, z):
    g = g + s["weight_decay"] * w
    square = s["alpha"] * z["s"] + (1 - s["alpha"]) * g**2
    b = s["momentum"] * z["b"] + g / (guarded_root(square) + s["eps"])
    return w - s["lr"] * b, {"s": square, "b": b}


def centered(s, t, g, w, z):
    g = g + s["weight_decay"] * w
    square, a = (s["alpha"] * z[name] + (1 - s["alpha"]) * x for name, x in (("s", g**2), ("a", g)))
    b = s["momentum"] * z["b"] + g / (guarded_root(square - a**2) + s["eps"])
    return w - s["lr"] * b, {"s": square, "a": a, "b": b}


def radam(decoupled):
    def step(s, t, g, w, z):
        if decoupled:
            w = w - s["lr"] * s["weight_decay"] * w
        else:
            g = g + s["weight_decay"] * w
        n, beta2 = t + 1, s["beta2"]
        m = s["beta1"] * z["m"] + (1 - s["beta1"]) * g
        square = beta2 * z["s"] + (1 - beta2) * g**2
        change = s["lr"] * m / (1 - s["beta1"] ** n)
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * n * beta2**n / (1 - beta2**n)
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            change = change * rectified.sqrt() * (1 - beta2**n).sqrt() / (guarded_root(square) + s["eps"])
        return w - change, {"m": m, "s": square}

    return step


def lion(s, t, g, w, z):
    u = torch.sign(s["beta1"] * z["m"] + (1 - s["beta1"]) * g)
    return w - s["lr"] * (u + s["weight_decay"] * w), {"m": s["beta2"] * z["m"] + (1 - s["beta2"]) * g}


def lars(s, t, g, w, z):
    size = w.square().sum().sqrt()
    ratio = s["trust"] * size / (g.square().sum().sqrt() + s["weight_decay"] * size + s["eps"])
    v = s["momentum"] * z["v"] + s["lr"] * ratio * (g + s["weight_decay"] * w)
    return w - v, {"v": v}


def lamb(s, t, g, w, z):
    m = s["beta1"] * z["m"] + (1 - s["beta1"]) * g
    square = s["beta2"] * z["s"] + (1 - s["beta2"]) * g**2
    direction = m / (1 - s["beta1"] ** (t + 1)) / (guarded_root(square / (1 - s["beta2"] ** (t + 1))) + s["eps"])
    direction = direction + s.get("weight_decay", 0.0) * w
    ratio = w.square().sum().sqrt() / direction.square().sum().sqrt()
    return w - s["lr"] * ratio * direction, {"m": m, "s": square}


def newton_schulz(v):
    """Without transposing: (X X')^k X is X (X' X)^k."""
    x = v / v.square().sum().sqrt()
    for _ in range(5):
        a = x @ x.T
        x = NS[0] * x + (NS[1] * a + NS[2] * a @ a) @ x
    return x


def muon(direction, scale):
    """``direction``: of (momentum, g, states)."""

    def step(s, t, g, w, z):
        new = {"v": s["momentum"] * z["v"] + (1 - s["momentum"]) * g}
        if "p" in z:
            new["p"] = z["p"] / 16 + g * 15 / 16
        w = w - s["lr"] * s["weight_decay"] * w
        return w - s["lr"] * scale(*w.shape) * newton_schulz(direction(s["momentum"], g, new)), new

    return step


def original(rows, columns):
    return max(1, rows / columns) ** 0.5


def as_adamw(rows, columns):
    return 0.2 * max(rows, columns) ** 0.5


ADAM = {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
RMSPROP = {"lr": 0.01, "alpha": 0.9, "momentum": 0.7, "eps": 1e-3, "weight_decay": 0.02}
MUON = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.1}
EXACTLY = {"ns_dtype": torch.float64}  # whatever the weights are

SHIPPED = {
    "rh.Adam": Case(with_betas(rh.Adam), ADAM, adam, ("m", "s"), by_torch=on_parameters(torch.optim.Adam)),
    "rh.AdamW": Case(with_betas(rh.AdamW), ADAM, adamw, ("m", "s"), (), by_torch=on_parameters(torch.optim.AdamW)),
    "rh.RMSprop": Case(
        rh.RMSprop,
        RMSPROP,
        rmsprop,
        ("s", "b"),
        by_torch=torch.optim.RMSprop,
    ),
    "rh.RMSprop, centered": Case(
        rh.RMSprop, RMSPROP, centered, ("s", "a", "b"), options={"centered": True}, by_torch=torch.optim.RMSprop
    ),
    "rh.RAdam": Case(with_betas(rh.RAdam), ADAM, radam(False), ("m", "s"), by_torch=on_parameters(torch.optim.RAdam)),
    "rh.RAdam, decoupled": Case(
        with_betas(rh.RAdam),
        ADAM,
        radam(True),
        ("m", "s"),
        (),
        options={"decoupled_weight_decay": True},
        by_torch=on_parameters(torch.optim.RAdam),
    ),
    "rh.Lion": Case(
        with_betas(rh.Lion),
        {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1},
        lion,
        ("m",),
        (),
        without_effect=("beta1", "beta2"),
    ),
    "rh.LARS": Case(
        rh.LARS, {"lr": 1.0, "momentum": 0.8, "weight_decay": 0.02, "trust": 0.02, "eps": 1e-2}, lars, ("v",), ("lr",)
    ),
    "rh.LAMB": Case(
        with_betas(rh.LAMB), {name: ADAM[name] for name in ("lr", "beta1", "beta2", "eps")}, lamb, ("m", "s"), ("lr",)
    ),
    "rh.LAMB, weight decay": Case(with_betas(rh.LAMB), ADAM, lamb, ("m", "s"), ("lr",), reversible=False),
    "rh.Muon": Case(rh.Muon, MUON, muon(lambda mu, g, z: z["v"], original), ("v",), (), options=EXACTLY, matrices=True),
    "rh.Muon, traced Nesterov": Case(
        rh.Muon,
        MUON,
        muon(lambda mu, g, z: (1 - mu) * z["p"] + mu * z["v"], as_adamw),
        ("p", "v"),
        (),
        options={"nesterov": True, "adjust_lr_fn": "match_rms_adamw", **EXACTLY},
        matrices=True,
    ),
}  # fmt: skip

CASES = {**OTHERS, **SHIPPED}
