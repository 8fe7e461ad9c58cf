"""One step of every rule, written from the formulas in the rules' documentation, on plain tensors that torch differentiates.

A formula gets settings ``h`` (numbers, or tensors that may require grad), the step ``t`` from 0, the gradient ``g``, the weight
``w`` and its states ``z``, which it writes over; it returns the new weight. Conventions where torch has infinity times 0: the
derivative of a root and of a norm at 0 is 0.
"""

from __future__ import annotations

import math

import torch

__all__ = ["RULES", "STATES"]


def root(s):
    positive = s > 0
    return torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)


def norm(x):
    return root(x.square().sum())


def sgd(h, t, g, w, z):
    dampening = 0.0 if t == 0 or bool(h.momentum == 0) else h.dampening
    z["v"] = h.momentum * z["v"] + (1 - dampening) * (g + h.weight_decay * w)
    return w - h.lr * z["v"]


def nesterov_sgd(h, t, g, w, z):
    g = g + h.weight_decay * w
    z["v"] = h.momentum * z["v"] + g
    return w - h.lr * (g + h.momentum * z["v"])


def traced_sgd(h, t, g, w, z):
    nu = 2.0**-h.trace_bits
    g = g + h.weight_decay * w
    z["p"] = nu * z["p"] + (1 - nu) * g
    if not h.nesterov:
        return w - h.lr * z["p"]
    z["v"] = h.momentum * z["v"] + g
    return w - h.lr * (z["p"] + h.momentum * z["v"])


def moments(h, g, z):
    z["m"] = h.beta1 * z["m"] + (1 - h.beta1) * g
    z["s"] = h.beta2 * z["s"] + (1 - h.beta2) * g * g


def corrected(h, t, z):
    return z["m"] / (1 - h.beta1 ** (t + 1)), z["s"] / (1 - h.beta2 ** (t + 1))


def adam(h, t, g, w, z):
    moments(h, g + h.weight_decay * w, z)
    m, s = corrected(h, t, z)
    return w - h.lr * m / (root(s + h.eps_root) + h.eps)


def adamw(h, t, g, w, z):
    moments(h, g, z)
    m, s = corrected(h, t, z)
    return (1 - h.lr * h.weight_decay) * w - h.lr * m / (root(s + h.eps_root) + h.eps)


def radam(h, t, g, w, z):
    if h.decoupled_weight_decay:
        w = (1 - h.lr * h.weight_decay) * w
    else:
        g = g + h.weight_decay * w
    moments(h, g, z)
    t = t + 1
    r = 2 / (1 - h.beta2) - 1
    rho = r - 2 * t * h.beta2**t / (1 - h.beta2**t)
    step = h.lr / (1 - h.beta1**t) * z["m"]
    if not rho > 5:
        return w - step
    rectified = ((rho - 4) * (rho - 2) * r / ((r - 4) * (r - 2) * rho)) ** 0.5 * (1 - h.beta2**t) ** 0.5
    return w - step * rectified / (root(z["s"]) + h.eps)


def rmsprop(h, t, g, w, z):
    g = g + h.weight_decay * w
    z["s"] = h.alpha * z["s"] + (1 - h.alpha) * g * g
    variance = z["s"]
    if h.centered:
        z["a"] = h.alpha * z["a"] + (1 - h.alpha) * g
        variance = torch.maximum(z["s"] - z["a"] * z["a"], 2.0**-20 * z["s"])
    z["b"] = h.momentum * z["b"] + g / (root(variance) + h.eps)
    return w - h.lr * z["b"]


def lion(h, t, g, w, z):
    sign = torch.sign(h.beta1 * z["m"] + (1 - h.beta1) * g).detach()
    z["m"] = h.beta2 * z["m"] + (1 - h.beta2) * g
    return (1 - h.lr * h.weight_decay) * w - h.lr * sign


def muon(h, t, g, w, z):
    z["v"] = h.momentum * z["v"] + (1 - h.momentum) * g
    mixed = z["v"]
    if h.nesterov:
        nu = 2.0**-h.trace_bits
        z["p"] = nu * z["p"] + (1 - nu) * g
        mixed = (1 - h.momentum) * z["p"] + h.momentum * z["v"]
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = w.shape[0] > w.shape[1]
    x = mixed.T if tall else mixed
    x = x / norm(x).clamp(min=1e-7)
    for _ in range(h.ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    rms = h.adjust_lr_fn == "match_rms_adamw"
    scale = 0.2 * math.sqrt(max(w.shape)) if rms else math.sqrt(max(1, w.shape[0] / w.shape[1]))
    return (1 - h.lr * h.weight_decay) * w - h.lr * scale * (x.T if tall else x)


def lars(h, t, g, w, z):
    below = norm(g) + h.weight_decay * norm(w) + h.eps
    ratio = h.trust * norm(w) / torch.where(below > 0, below, 1.0) if bool(norm(w) > 0) else 1.0
    z["v"] = h.momentum * z["v"] + h.lr * ratio * (g + h.weight_decay * w)
    return w - z["v"]


def lamb(h, t, g, w, z):
    moments(h, g, z)
    m, s = corrected(h, t, z)
    r = m / (root(s) + h.eps) + h.weight_decay * w
    ratio = norm(w) / norm(r) if bool(norm(w) > 0) and bool(norm(r) > 0) else 1.0
    return w - h.lr * ratio * r


RULES = {
    "SGD": sgd,
    "NesterovSGD": nesterov_sgd,
    "TracedSGD": traced_sgd,
    "Adam": adam,
    "AdamW": adamw,
    "RAdam": radam,
    "RMSprop": rmsprop,
    "Lion": lion,
    "Muon": muon,
    "LARS": lars,
    "LAMB": lamb,
}
# Name of a state -> power of the gradient's scale, as the documentation of a rule of one's own has it.
STATES = {
    "SGD": {"v": 1},
    "NesterovSGD": {"v": 1},
    "TracedSGD": {"p": 1, "v": 1},
    **{name: {"m": 1, "s": 2} for name in ("Adam", "AdamW", "RAdam", "LAMB")},
    "RMSprop": {"s": 2, "a": 1, "b": 0},
    "Lion": {"m": 1},
    "Muon": {"p": 1, "v": 1},
    "LARS": {"v": 0},
}
