"""ReversibleRMSprop: torch's optimizer, whose every step can be undone bit for bit."""

from typing import Any, ClassVar

from torch import Tensor

from reversible_hypergrad.optim.by_rule import RuleOptimizer
from reversible_hypergrad.rules.rmsprop import RMSprop

__all__ = ["ReversibleRMSprop"]


class ReversibleRMSprop(RuleOptimizer):
    """RMSprop with momentum in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.RMSprop` that can rewind.

    Trains as ``torch.optim.RMSprop`` does, within a quantum of each number per step::

        g = grad + weight_decay * w;  s = alpha * s + (1 - alpha) * g * g;  b = momentum * b + g / (sqrt(s) + eps)
        w = w - lr * b

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        alpha: in [2^-16, 1).
        eps: >= 0.
        weight_decay: as in torch.
        momentum: in [2^-16, 1]; torch's default of 0 is refused: without momentum the update contains the gradient, which is
            known only where the weights are.
        centered: as in torch, for all groups; where gradients hardly vary see :class:`RMSprop`.
        capturable: refused, with the reason.
        foreach: accepted for compatibility.
        maximize: refused, with the remedy.
        differentiable: refused, with the reason.
        state_bits: of weights and ``b``: 32 or 64, ``s`` has 64 in any case; None: 64 if there are float64 parameters, else 32.
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash there.

    Cost: log2(1/alpha) + log2(1/momentum) bits per weight and step, 0.167 at the defaults, and 16 bytes per weight beside the
    float weight (24 with ``state_bits=64``); with ``centered`` log2(1/alpha) and 4 (8) bytes more. A step is made of torch's
    operations, one tensor after the other: some dozens of passes over memory, and on a GPU the host waits for each.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = rh.ReversibleRMSprop([weight], lr=0.01, momentum=0.8)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     weight.square().sum().backward()
    >>> for _ in range(10):
    ...     optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 10)
    >>> weight
    Parameter containing:
    tensor([1., 1., 1.], requires_grad=True)

    Source: :class:`RMSprop`.
    """

    decays: ClassVar = ("alpha", "momentum")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0.9,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        rule = RMSprop(centered=centered)
        super().__init__(params, rule, defaults, fixed=("centered",), state_bits=state_bits, verify_every=verify_every)
