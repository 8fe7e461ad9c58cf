"""ReversibleTracedSGD: SGD without momentum, or with Nesterov's, whose every step can be undone bit for bit."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from reversible_hypergrad.optim.base import ReversibleOptimizer
from reversible_hypergrad.optim.settings import Setting, Settings, read, refuse_options
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.rules.base import LEAST_FACTOR
from reversible_hypergrad.rules.traced import TracedSGD

__all__ = ["ReversibleTracedSGD"]


class ReversibleTracedSGD(ReversibleOptimizer):
    """SGD with momentum 0, or with Nesterov's, in exact fixed-point arithmetic; it can rewind.

    Such steps contain the gradient itself, which is known only where the weights are. Here a short trace of the gradients stands
    in its place::

        g = grad + weight_decay * w;  p = nu * p + (1 - nu) * g                              nu = 2^-trace_bits
        w = w - lr * p          or, with nesterov,  v = momentum * v + g;  w = w - lr * (p + momentum * v)

    So 1 - nu of a gradient counts at once, 15/16 by default, and the rest in the steps after.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        momentum: 0, or in [2^-16, 1] with ``nesterov``.
        weight_decay: as in torch.
        nesterov: whether the momentum is Nesterov's, for all groups. :class:`ReversibleSGD` has the ordinary one.
        trace_bits: 1 to 16.
        foreach: accepted for compatibility.
        differentiable: refused, with the reason.
        fused: as ``foreach``.
        state_bits: as for :class:`ReversibleSGD`.
        verify_every: as for :class:`ReversibleSGD`.

    Cost: ``trace_bits`` bits per weight and step, and log2(1/momentum) more with Nesterov. A step is made of torch's operations,
    one tensor after the other: some dozens of passes over memory, and on a GPU the host waits for each.

    Raises:
        TypeError: for parameters and settings that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = rh.ReversibleTracedSGD([weight], lr=0.1, momentum=0.9, nesterov=True)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = weight.square().sum()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(10):
    ...     _ = optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 10)
    >>> weight
    Parameter containing:
    tensor([1., 1., 1.], requires_grad=True)

    Source: :class:`TracedSGD`, where the distance from the true rule is.
    """

    known = (
        Setting("lr", lambda x: x >= 0 and math.isfinite(x), "a finite number >= 0", label="learning rate"),
        Setting("momentum", lambda x: x == 0 or LEAST_FACTOR <= x <= 1, "0, or a number in [2^-16, 1] with nesterov=True"),
        Setting("weight_decay", lambda x: x >= 0 and math.isfinite(x), "a finite number >= 0"),
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trace_bits: int = 4,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        self.nesterov = nesterov
        self.rule = TracedSGD(1.0, 0.5 if nesterov is True else 0.0, nesterov=nesterov, trace_bits=trace_bits)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, state_bits=state_bits, verify_every=verify_every)

    def settings_of(self, group: dict[str, Any]) -> Settings:
        refuse_options(group)
        settings = read(self.known, group)
        if (settings["momentum"] > 0) != self.nesterov:
            expected = "a number in [2^-16, 1] with nesterov=True" if self.nesterov else "0 without nesterov=True"
            raise ValueError(
                f"Invalid momentum value: {settings['momentum']}. Expected {expected}; rh.ReversibleSGD has the ordinary momentum"
            )
        return settings

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "nesterov": self.nesterov}

    def numbers_of(self, settings: Settings, t: int) -> StepNumbers:
        h = SimpleNamespace(**settings)
        decay = self.rule.decay(h, t)
        return StepNumbers(np.array([*(decay[name] for name in self.rule.states), 1.0]), np.zeros(0), settings=(h,))
