"""ReversibleSGD: torch.optim.SGD whose every step can be undone bit for bit."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from reversible_hypergrad.optim.base import ReversibleOptimizer
from reversible_hypergrad.optim.settings import Setting, Settings, read, refuse_options
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.rules.base import LEAST_FACTOR
from reversible_hypergrad.rules.sgd import SGD

__all__ = ["ReversibleSGD"]


class ReversibleSGD(ReversibleOptimizer):
    """SGD with momentum in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.SGD` that can rewind.

    Trains as ``torch.optim.SGD`` does, within one fixed-point quantum per step, first-step rule included::

        g = grad + weight_decay * w;  v = momentum * v + (1 - dampening) * g;  w = w - lr * v

    Each weight and velocity is an integer times a scale of its tensor. The decay multiplies the scale of the velocities; where it
    has halved, they are halved, and the bit that each loses is kept: log2(1/momentum) bits per weight and step (0.152 at 0.9),
    which is all that undoing needs beside the gradient. What outgrows its integers gets a larger scale, which is undone alike.
    Schedulers, gradient clipping, GradScaler and 16-bit parameters (the integers are the master copy) work as with
    ``torch.optim.SGD``.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        momentum: in [2^-16, 1], any double, used as it is. :class:`ReversibleTracedSGD` has 0.
        dampening: as in torch.
        weight_decay: as in torch.
        nesterov: refused, with the reason.
        maximize: as in torch.
        foreach: accepted for compatibility; a step always is one fused call per group.
        differentiable: refused, with the reason.
        fused: as ``foreach``.
        state_bits: of each integer: 64 (16 bytes per weight beside the float weight) or 32 (8 bytes, and faster steps); None: 64
            if there are float64 parameters, else 32. With either, training is as near to SGD in float64 as SGD in float32 is.
            Gradients are held to 2^-40 of the first one's largest; with 32 bits to 2^-25 (momentum 0.5), 2^-23 (0.9), 2^-20
            (0.99) or 2^-17 (1).
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash
            there. 1 checks every step, keeps failed undos harmless, and costs 1 to 16 % of a step.

    Cost per step, 10 million float32 weights, 2 cores: see the table in README.md. Memory: :meth:`memory`.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> model = torch.nn.Linear(3, 1)
    >>> start = model.weight.detach().clone()
    >>> optimizer = rh.ReversibleSGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (model(x) - y).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(100):
    ...     _ = optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 100)
    >>> torch.equal(model.weight, start)
    True

    Source: Maclaurin, Duvenaud, Adams, *Gradient-based Hyperparameter Optimization through Reversible Learning*,
    ICML 2015, algorithms 2 and 3, in torch's convention and with the momentum in the scale of the velocities.
    """

    rule = SGD(lr=1.0)
    known = (
        Setting("lr", lambda x: x >= 0 and math.isfinite(x), "a finite number >= 0", label="learning rate"),
        Setting(
            "momentum",
            lambda x: LEAST_FACTOR <= x <= 1,
            "a number in [2^-16, 1]: a step that forgets the velocity cannot be undone from a few bits; use "
            "rh.ReversibleTracedSGD, or torch.optim.SGD, there",
        ),
        Setting("dampening", math.isfinite, "a finite number"),
        Setting("weight_decay", lambda x: x >= 0 and math.isfinite(x), "a finite number >= 0"),
        Setting("maximize", lambda x: x in (0, 1), "True or False"),
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, state_bits=state_bits, verify_every=verify_every)

    def settings_of(self, group: dict[str, Any]) -> Settings:
        if group["nesterov"]:
            raise ValueError(
                "nesterov=True cannot be undone: the step back would need the gradient before the weights that it is evaluated "
                "at are known. Use nesterov=False, or rh.ReversibleTracedSGD"
            )
        refuse_options(group)
        return read(self.known, group)

    def numbers_of(self, settings: Settings, t: int) -> StepNumbers:
        """As torch does, the first velocity is the gradient, undampened. Maximizing turns the gradient, not the decay."""
        sign = -1.0 if settings["maximize"] else 1.0
        share = sign * (1.0 if t == 0 else 1.0 - settings["dampening"])
        decay, lr = sign * settings["weight_decay"], settings["lr"]
        h = SimpleNamespace(lr=lr, momentum=settings["momentum"], dampening=1.0 - share, weight_decay=decay)
        return StepNumbers(np.array([settings["momentum"], 1.0]), np.array([share, decay, lr]), settings=(h,))
