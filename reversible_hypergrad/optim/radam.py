"""ReversibleRAdam: torch's optimizer, whose every step can be undone bit for bit."""

from typing import Any, ClassVar

from torch import Tensor

from reversible_hypergrad.optim.by_rule import RuleOptimizer
from reversible_hypergrad.rules.radam import RAdam

__all__ = ["ReversibleRAdam"]


class ReversibleRAdam(RuleOptimizer):
    """Rectified Adam in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.RAdam` that can rewind.

    Trains as ``torch.optim.RAdam`` does, within a quantum of each number per step, with its bias corrections and its
    rectification by how many steps a parameter has taken. The formulas are at :class:`RAdam`.

    Args:
        params: parameters, named parameters or groups, dense and floating point.
        lr: >= 0, may be a tensor.
        betas: two numbers in [2^-16, 1).
        eps: >= 0.
        weight_decay: >= 0; where it is decoupled, lr * weight_decay must stay below 1.
        decoupled_weight_decay: as in torch, for all groups.
        foreach: accepted for compatibility.
        maximize: refused, with the remedy.
        capturable: refused, with the reason.
        differentiable: refused, with the reason.
        state_bits: of weights and first moments: 32 or 64, second moments have 64 in any case; None: 64 if there are float64
            parameters, else 32.
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash there.

    Cost: log2(1/beta1) + log2(1/beta2) bits per weight and step, 0.153 at the defaults, and 16 bytes per weight beside the float
    weight (24 with ``state_bits=64``). A step is made of torch's operations, one tensor after the other: some dozens of passes
    over memory, and on a GPU the host waits for each.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = rh.ReversibleRAdam([weight], lr=0.01)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     weight.square().sum().backward()
    >>> for _ in range(10):
    ...     optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 10)
    >>> weight
    Parameter containing:
    tensor([1., 1., 1.], requires_grad=True)

    Source: :class:`RAdam`.
    """

    decays: ClassVar = ("beta1", "beta2")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        rule = RAdam(decoupled_weight_decay=decoupled_weight_decay)
        fixed = ("decoupled_weight_decay",)
        super().__init__(params, rule, defaults, fixed=fixed, state_bits=state_bits, verify_every=verify_every)
