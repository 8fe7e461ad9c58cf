"""ReversibleMuon: torch's optimizer, whose every step can be undone bit for bit."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.optim.by_rule import RuleOptimizer
from reversible_hypergrad.optim.settings import Settings
from reversible_hypergrad.rules.muon import Muon
from reversible_hypergrad.rules.newton_schulz import Coefficients

__all__ = ["ReversibleMuon"]


class ReversibleMuon(RuleOptimizer):
    """Muon in exact fixed-point arithmetic; a drop-in for :class:`torch.optim.Muon` with ``nesterov=False`` that can rewind.

    Trains as ``torch.optim.Muon(nesterov=False)`` does, within a quantum of each number per step. The formulas are at
    :class:`Muon`.

    Args:
        params: matrices, by themselves, named or in groups, floating point.
        lr: >= 0, may be a tensor.
        weight_decay: >= 0, with lr * weight_decay below 1.
        momentum: in [2^-16, 1).
        nesterov: torch's default of True cannot be undone. Here True has a trace of the last few gradients in the gradient's
            place, see :class:`Muon`; the same for all groups, as all that follows.
        ns_coefficients: as in torch.
        eps: as in torch, > 0.
        ns_steps: as in torch, 1 to 99.
        adjust_lr_fn: as in torch.
        trace_bits: of the trace, 1 to 16.
        ns_dtype: of the Newton-Schulz iteration: torch.bfloat16 as in torch, torch.float32 or torch.float64.
        state_bits: 32 or 64, of each integer; None: 64 if there are float64 parameters, else 32.
        verify_every: the state is hashed after every so-many-th step, and an undone step is checked against the hash there.

    Other parameters need an optimizer of their own. Step one after the other, and undo both in one go, the second inside of the
    first, so that the gradient is computed where both have moved their weights back::

        muon.step_back(lambda: adamw.step_back(closure))

    Cost: log2(1/momentum) bits per weight and step, 0.074 at the default, what the weight decay takes, 1e-4 at the defaults, and
    ``trace_bits`` more with ``nesterov``; 8 bytes per weight beside the float weight, 12 with ``nesterov`` (twice that with
    ``state_bits=64``). On a GPU the host waits for each step.

    Raises:
        TypeError: for settings and parameters that cannot be honoured, at construction or at the step.
        ValueError: for numbers that make no sense, and parameters that are no matrices, at construction or at the step.

    >>> import torch, reversible_hypergrad as rh
    >>> weight = torch.nn.Parameter(torch.ones(2, 3))
    >>> optimizer = rh.ReversibleMuon([weight], lr=0.01)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     weight.square().sum().backward()
    >>> for _ in range(10):
    ...     optimizer.step(closure)
    >>> _ = optimizer.rewind([closure] * 10)
    >>> weight
    Parameter containing:
    tensor([[1., 1., 1.],
            [1., 1., 1.]], requires_grad=True)

    Source: :class:`Muon`.
    """

    decays: ClassVar = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = False,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        trace_bits: int = 4,
        ns_dtype: torch.dtype = torch.bfloat16,
        state_bits: int | None = None,
        verify_every: int = 1,
    ) -> None:
        options = {
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        rule = Muon(**options, trace_bits=trace_bits, ns_dtype=ns_dtype)  # type: ignore[arg-type]
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, **options}
        super().__init__(params, rule, defaults, fixed=tuple(options), state_bits=state_bits, verify_every=verify_every)

    def settings_of(self, group: dict[str, Any]) -> Settings:
        for parameter in group["params"]:  # of a saved group their numbers
            if isinstance(parameter, Tensor) and parameter.dim() != 2:
                raise ValueError(
                    f"params: ReversibleMuon expected matrices, got a parameter of shape {tuple(parameter.shape)}. Give it to "
                    "another optimizer, such as rh.ReversibleAdamW"
                )
        return super().settings_of(group)
