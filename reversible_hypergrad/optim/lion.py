"""ReversibleLion: Lion, whose every step can be undone bit for bit."""

from typing import Any, ClassVar

from torch import Tensor

from reversible_hypergrad.optim.by_rule import RuleOptimizer
from reversible_hypergrad.rules.lion import Lion

__all__ = ["ReversibleLion"]


class ReversibleLion(RuleOptimizer):
    """Lion in exact fixed-point arithmetic; it can rewind.

    A step is the paper's, within a quantum of each number::

        u = sign(beta1 * m + (1 - beta1) * grad);  m = beta2 * m + (1 - beta2) * grad
        w = (1 - lr * weight_decay) * w - lr * u

    In the sign, too, ``m`` is known to about a quantum over beta2.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        betas: a number in [0, 1), and one in [2^-16, 1).
        weight_decay: >= 0, with lr * weight_decay below 1.
        state_bits: 32 or 64, of each integer; None: 64 if there are float64 parameters, else 32.
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash there.

    Cost: 1 + log2(1/beta2) bits per weight and step, 1.0145 at the defaults, and another bit in steps where a parameter has signs
    that are 0; 8 bytes per weight beside the float weight (16 with ``state_bits=64``). A step is made of torch's operations, one
    tensor after the other: some dozens of passes over memory, and on a GPU the host waits for each.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = rh.ReversibleLion([weight], lr=0.01, weight_decay=0.1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     weight.square().sum().backward()
    >>> for _ in range(10):
    ...     optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 10)
    >>> weight
    Parameter containing:
    tensor([1., 1., 1.], requires_grad=True)

    Source: :class:`Lion`.
    """

    decays: ClassVar = ("beta2",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, Lion(), defaults, state_bits=state_bits, verify_every=verify_every)
