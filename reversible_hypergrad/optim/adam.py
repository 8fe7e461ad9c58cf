"""ReversibleAdam and ReversibleAdamW: torch's optimizers whose every step can be undone bit for bit."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from reversible_hypergrad.optim.base import ReversibleOptimizer
from reversible_hypergrad.optim.settings import Setting, Settings, read, refuse_forgetting, refuse_options
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.rules.adam import Adam, AdamW
from reversible_hypergrad.rules.base import LEAST_FACTOR

__all__ = ["ReversibleAdam", "ReversibleAdamW"]

_BETA = "a number in [2^-16, 1): a step that forgets a state cannot be undone from a few bits"


class ReversibleAdam(ReversibleOptimizer):
    """Adam in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.Adam` that can rewind.

    Trains as ``torch.optim.Adam`` does, within a quantum of each number per step, with its bias corrections::

        g = grad + weight_decay * w;  m = beta1 * m + (1 - beta1) * g;  s = beta2 * s + (1 - beta2) * g * g
        w = w - lr / (1 - beta1^t) * m / (sqrt(s / (1 - beta2^t)) + eps)

    Each weight and moment is an integer times a scale of its tensor. The decays multiply the scales of the moments; where one
    has halved, the integers are halved, and the bit that each loses is kept: 0.153 bits per weight and step at the default
    betas, which is all that undoing needs beside the gradient. What outgrows its integers gets a larger scale, which is undone
    alike. Schedulers, gradient clipping, GradScaler and 16-bit parameters (the integers are the master copy) work as with
    ``torch.optim.Adam``.

    Second moments are at least one quantum, 2^-50 of the first gradient's largest square or less: weights whose gradients are
    below 1e-7 of the largest ones move less than torch's do, as with a larger eps.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        betas: two numbers in [2^-16, 1), any doubles, used as they are.
        eps: > 0.
        weight_decay: as in torch.
        amsgrad: refused, with the reason.
        maximize: as in torch.
        foreach: accepted for compatibility; a step always is one fused call per group.
        capturable: refused, with the reason.
        differentiable: refused, with the reason.
        fused: as ``foreach``.
        state_bits: of weights and first moments: 32 (16 bytes per weight beside the float weight, second moments with 64 bits
            included) or 64 (24 bytes); None: 64 if there are float64 parameters, else 32. With either, training is as near to
            Adam in float64 as Adam in float32 is.
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash there.

    Cost per step, 10 million float32 weights, 2 cores: see the table in README.md. Memory: :meth:`memory`.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> model = torch.nn.Linear(3, 1)
    >>> start = model.weight.detach().clone()
    >>> optimizer = rh.ReversibleAdam(model.parameters(), lr=0.01)
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

    Source: Kingma, Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, in torch's form; the reversal is that of
    Maclaurin, Duvenaud, Adams 2015 with the decays in the scales of the moments.
    """

    rule = Adam()
    known = (
        Setting("lr", lambda x: x >= 0 and math.isfinite(x), "a finite number >= 0", label="learning rate"),
        Setting("beta1", lambda x: LEAST_FACTOR <= x < 1, _BETA, label="beta parameter at index 0", place=("betas", 0)),
        Setting("beta2", lambda x: LEAST_FACTOR <= x < 1, _BETA, label="beta parameter at index 1", place=("betas", 1)),
        Setting("eps", lambda x: x > 0 and math.isfinite(x), "a finite number > 0", label="epsilon value"),
        Setting("weight_decay", lambda x: x >= 0 and math.isfinite(x), "a finite number >= 0"),
        Setting("maximize", lambda x: x in (0, 1), "True or False"),
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, state_bits=state_bits, verify_every=verify_every)

    def settings_of(self, group: dict[str, Any]) -> Settings:
        name = type(self).__name__
        if group["amsgrad"]:
            raise ValueError(
                f"amsgrad=True cannot be undone: {name} would have to keep each maximum that a later one overwrites, a number "
                "per weight and step. Use amsgrad=False"
            )
        refuse_options(group)
        settings = read(self.known, group)
        if self.rule.decoupled:
            refuse_forgetting(settings, 1 - settings["lr"] * settings["weight_decay"])
        return settings

    def numbers_of(self, settings: Settings, t: int) -> StepNumbers:
        """Maximizing turns the gradient, not the decay."""
        h = SimpleNamespace(**settings, eps_root=0.0)
        factors = self.rule.decay(h, t)
        share, second, decay, *others = self.rule.numbers(h, t)
        sign = -1.0 if settings["maximize"] else 1.0
        return StepNumbers(
            np.array([factors["m"], factors["s"], factors.get("weight", 1.0)]),
            np.array([sign * share, second, sign * decay, *others]),
            settings=(h,),
            steps=(t,),
        )


class ReversibleAdamW(ReversibleAdam):
    """AdamW in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.AdamW` that can rewind.

    Trains as ``torch.optim.AdamW`` does, within a quantum of each number per step, with its bias corrections::

        m = beta1 * m + (1 - beta1) * grad;  s = beta2 * s + (1 - beta2) * grad * grad
        w = (1 - lr * weight_decay) * w - lr / (1 - beta1^t) * m / (sqrt(s / (1 - beta2^t)) + eps)

    Arithmetic, memory, cost and errors are those of :class:`ReversibleAdam`. The weights' decay, too, multiplies a scale: at lr *
    weight_decay = 1e-5 they are halved once in 69,000 steps.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        betas: two numbers in [2^-16, 1), any doubles, used as they are.
        eps: > 0.
        weight_decay: >= 0, with lr * weight_decay below 1.
        amsgrad: refused, with the reason.
        maximize: as in torch.
        foreach: accepted for compatibility; a step always is one fused call per group.
        capturable: refused, with the reason.
        differentiable: refused, with the reason.
        fused: as ``foreach``.
        state_bits: see :class:`ReversibleAdam`.
        verify_every: see :class:`ReversibleAdam`.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = rh.ReversibleAdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     model(torch.ones(2, 3)).square().sum().backward()
    >>> start = model.weight.detach().clone()
    >>> for _ in range(10):
    ...     optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 10)
    >>> torch.equal(model.weight, start)
    True

    Source: Loshchilov, Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, in torch's form.
    """

    rule = AdamW()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            state_bits=state_bits,
            verify_every=verify_every,
        )
