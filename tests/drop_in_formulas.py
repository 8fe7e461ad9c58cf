"""What a step of each drop-in optimizer is, from the formulas in their documentation, for float64 tensors or bounded numbers.

A formula gets settings ``h`` (floats, or tensors that give one to each element), the number ``t`` of steps that each element has
taken, its gradient ``g`` and weight ``w``, and the states ``z``. It returns the new weight and states. ``keep(name, value)`` is
called with each state as it is then kept, and what it returns is gone on with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from bounded_numbers import Bounded, where
from torch import Tensor

__all__ = ["FORMULAS", "orthogonal"]

Keep = Callable[[str, Any], Any]


def sgd(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    g = g * (1.0 - 2.0 * h.maximize) + w * h.weight_decay
    z["v"] = keep("v", where(t == 0, g * 1.0, z["v"] * h.momentum + g * (1.0 - h.dampening)))
    return w - z["v"] * h.lr


def traced(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    nu = 2.0**-h.trace_bits
    g = g + w * h.weight_decay
    z["p"] = keep("p", z["p"] * nu + g * (1 - nu))
    if not h.nesterov:
        return w - z["p"] * h.lr
    z["v"] = keep("v", z["v"] * h.momentum + g)
    return w - (z["p"] + z["v"] * h.momentum) * h.lr


def _moments(h: Any, g: Any, z: dict[str, Any], keep: Keep) -> None:
    z["m"] = keep("m", z["m"] * h.beta1 + g * (1 - h.beta1))
    z["s"] = keep("s", z["s"] * h.beta2 + g * g * (1 - h.beta2))


def _adam(h: Any, t: Tensor, z: dict[str, Any]) -> Any:
    root = (z["s"] / (1 - h.beta2 ** (t + 1))).sqrt() + h.eps
    return z["m"] / (1 - h.beta1 ** (t + 1)) / root * h.lr


def adam(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    _moments(h, g * (1.0 - 2.0 * h.maximize) + w * h.weight_decay, z, keep)
    return w - _adam(h, t, z)


def adamw(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    _moments(h, g * (1.0 - 2.0 * h.maximize), z, keep)
    return w * (1 - h.lr * h.weight_decay) - _adam(h, t, z)


def radam(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    if h.decoupled_weight_decay:
        w = w * (1 - h.lr * h.weight_decay)
    else:
        g = g + w * h.weight_decay
    _moments(h, g, z, keep)
    t = t + 1.0
    second = 1 - h.beta2**t
    r = torch.as_tensor(2 / (1 - h.beta2) - 1, dtype=torch.float64)
    rho = r - 2 * t * h.beta2**t / second
    rectified = ((rho - 4) * (rho - 2) * r / ((r - 4) * (r - 2) * rho)).clamp(min=0).sqrt()
    plain = z["m"] / (1 - h.beta1**t) * h.lr
    return w - where(rho > 5, plain * rectified * second**0.5 / (z["s"].sqrt() + h.eps), plain)


def rmsprop(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    g = g + w * h.weight_decay
    z["s"] = keep("s", z["s"] * h.alpha + g * g * (1 - h.alpha))
    variance = z["s"]
    if h.centered:
        z["a"] = keep("a", z["a"] * h.alpha + g * (1 - h.alpha))
        variance = (z["s"] - z["a"] * z["a"]).maximum(z["s"] * 2.0**-20)
    z["b"] = keep("b", z["b"] * h.momentum + g / (variance.sqrt() + h.eps))
    return w - z["b"] * h.lr


def lion(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    sign = (z["m"] * h.beta1 + g * (1 - h.beta1)).sign()
    z["m"] = keep("m", z["m"] * h.beta2 + g * (1 - h.beta2))
    return w * (1 - h.lr * h.weight_decay) - sign * h.lr


def muon(h: Any, t: Tensor, g: Any, w: Any, z: dict[str, Any], keep: Keep) -> Any:
    """Of one matrix."""
    rows, columns = t.shape
    z["v"] = keep("v", z["v"] * h.momentum + g * (1 - h.momentum))
    mixed = z["v"]
    if h.nesterov:
        nu = 2.0**-h.trace_bits
        z["p"] = keep("p", z["p"] * nu + g * (1 - nu))
        mixed = z["p"] * (1 - h.momentum) + z["v"] * h.momentum

    def iterated(matrix: Tensor) -> Tensor:
        return orthogonal(matrix, h)

    direction = mixed.through(iterated) if isinstance(mixed, Bounded) else iterated(mixed)
    rms = h.adjust_lr_fn == "match_rms_adamw"
    scale = 0.2 * math.sqrt(max(rows, columns)) if rms else math.sqrt(max(1.0, rows / columns))
    return w * (1 - h.lr * h.weight_decay) - direction * (h.lr * scale)


def orthogonal(v: Tensor, h: SimpleNamespace) -> Tensor:
    a, b, c = h.ns_coefficients
    x = v.mT if v.shape[0] > v.shape[1] else v
    x = x / (x.square().sum() + 1e-300).sqrt().clamp(min=h.eps)
    for _ in range(h.ns_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if v.shape[0] > v.shape[1] else x


# By the optimizer's name without "Reversible".
FORMULAS = {
    "SGD": sgd,
    "TracedSGD": traced,
    "Adam": adam,
    "AdamW": adamw,
    "RAdam": radam,
    "RMSprop": rmsprop,
    "Lion": lion,
    "Muon": muon,
}
