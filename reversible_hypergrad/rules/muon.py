"""Muon, as torch writes it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.newton_schulz import Coefficients, check_iteration, orthogonal
from reversible_hypergrad.rules.settings import Given, Resolved
from reversible_hypergrad.rules.traced import trace_of

__all__ = ["Muon"]

_ADJUSTMENTS = (None, "original", "match_rms_adamw")


class Muon(Rule):
    """Muon for matrices as :class:`torch.optim.Muon` with ``nesterov=False``, in training and in hypergradients::

        v = momentum * v + (1 - momentum) * g
        w = (1 - lr * weight_decay) * w - lr * scale * orthogonal(v)

    ``orthogonal`` is the quintic Newton-Schulz iteration X = a X + (b X X' + c (X X')^2) X from ``X = v / |v|``, and ``scale`` a
    number that depends on the matrix's shape.

    Torch's default is Nesterov's momentum, which orthogonalizes (1 - momentum) * g + momentum * v. That contains the gradient,
    which is known only where the weights are, so that such a step cannot be undone. ``nesterov=True`` is therefore not torch's,
    but near it: a trace of the last few gradients stands where the gradient stood, as in :class:`TracedSGD`::

        p = nu * p + (1 - nu) * g                                    nu = 2^-trace_bits
        w = (1 - lr * weight_decay) * w - lr * scale * orthogonal((1 - momentum) * p + momentum * v)

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape () or (steps,), or a dict of these by parameter name or pattern.
        momentum: in [0, 1), as ``lr``. To undo steps, at least 2^-16.
        weight_decay: >= 0, as ``lr``. To undo steps, lr * weight_decay must stay below 1.
        ns_coefficients: (a, b, c) of the iteration.
        eps: > 0; v is divided by no less.
        ns_steps: of the iteration, 1 to 99.
        adjust_lr_fn: the scale: None or "original" for sqrt(max(1, rows / columns)), "match_rms_adamw" for 0.2 *
            sqrt(max(rows, columns)).
        nesterov: whether the momentum is Nesterov's, by a gradient trace.
        trace_bits: of the trace, 1 to 16; without ``nesterov`` it means nothing.
        ns_dtype: of the iteration: torch.bfloat16 as in torch, torch.float32 or torch.float64. None: float64 where a step is
            computed in float64, that is for float64 weights and with ``Reversible(state_bits=64)``, and else bfloat16.

    ``lr``, ``momentum`` and ``weight_decay`` may require grad: then ``backward`` gives their derivative. That of an iteration in
    bfloat16 is taken as if that one iteration had been in the step's own precision: the derivative of rounding means nothing.

    Every parameter must be a matrix. For a model with others, see :class:`PerParameter`.

    Cost: one state; with :class:`Reversible` log2(1/momentum) bits per weight and step, 0.074 at the default, for the decay of
    the weights log2(1 / (1 - lr * weight_decay)), and with ``nesterov`` ``trace_bits`` more and another state. Beside it 4 bytes
    per weight and state and the weights' own integers of 4 (twice that with ``state_bits=64``). A step takes 3 ``ns_steps``
    matrix products, and undoing it as many.

    Raises:
        TypeError: for settings that are no numbers or tensors, and options of wrong types.
        ValueError: for options out of range; from :func:`train`, for numbers that make no sense, and parameters that are no
            matrices. It names the argument.

    >>> import torch, reversible_hypergrad as rh
    >>> rh.Muon(lr=0.02, weight_decay=0.01)
    Muon(lr=0.02, momentum=0.95, weight_decay=0.01)

    Source: Jordan and others, *Muon: An optimizer for hidden layers in neural networks*, 2024; Liu and others, *Muon is Scalable
    for LLM Training*, 2025, for "match_rms_adamw"; in torch's form. The trace is this library's.
    """

    states: ClassVar[Mapping[str, int]] = {"v": 1}
    headroom: ClassVar[Mapping[str, int]] = {"v": 1}  # small singular values count as much as large ones
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(1e-3),
        "momentum": SettingSpec(0.95, high=1.0, below=True),
        "weight_decay": SettingSpec(0.1),
    }

    def __init__(
        self,
        lr: Given = 1e-3,
        momentum: Given = 0.95,
        weight_decay: Given = 0.1,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        nesterov: bool = False,
        trace_bits: int = 4,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(lr=lr, momentum=momentum, weight_decay=weight_decay)
        check_iteration(ns_coefficients, eps, ns_steps, ns_dtype)
        if adjust_lr_fn not in _ADJUSTMENTS:
            raise ValueError(f"adjust_lr_fn: expected None, 'original' or 'match_rms_adamw', got {adjust_lr_fn!r}")
        if not isinstance(nesterov, bool):
            raise TypeError(f"nesterov: expected True or False, got {nesterov!r}")
        self._trace = trace_of(trace_bits)
        self.iteration = (tuple(ns_coefficients), eps, ns_steps, ns_dtype)
        self.adjust_lr_fn, self.nesterov, self.trace_bits = adjust_lr_fn, nesterov, trace_bits
        if nesterov:
            self.states = {"p": 1, "v": 1}  # type: ignore[misc]

    def __repr__(self) -> str:
        traced = f", nesterov=True, trace_bits={self.trace_bits})" if self.nesterov else ")"
        return super().__repr__()[:-1] + traced

    def resolve(self, names: Sequence[str], weights: Sequence[Tensor], steps: range) -> Resolved:
        for name, weight in zip(names, weights, strict=True):
            if weight.dim() != 2:
                raise ValueError(
                    f"optimizer: rh.Muon expected matrices, got {name!r} of shape {tuple(weight.shape)}. Train it by another "
                    f"rule: rh.PerParameter({{{name!r}: rh.AdamW(), '*': rh.Muon()}})"
                )
        return super().resolve(names, weights, steps)

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        factors = {"v": h.momentum, "weight": 1 - h.lr * h.weight_decay}
        return {"p": self._trace, **factors} if self.nesterov else factors

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if self.nesterov:
            yield "p", (1 - self._trace) * g
        yield "v", (1 - h.momentum) * g

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        v = (1 - h.momentum) * z["p"] + h.momentum * z["v"] if self.nesterov else z["v"]
        return h.lr * self._scale(v.shape) * orthogonal(v, *self.iteration)  # type: ignore[no-any-return]

    def _scale(self, shape: Sequence[int]) -> float:
        rows, columns = shape
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))
