"""What clips gradients: formulas in torch's operations, differentiated by torch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.rules.functions import root

__all__ = ["Clip", "check_gradient_options", "clip_norm", "clip_value"]


class Clip(ABC):
    """A function of all gradients of a step, and of one number, ``limit``, which may change from step to step.

    Args:
        name: of the argument, in errors.
        limit: a number above 0, or a tensor of them: one, or one per step.
    """

    def __init__(self, name: str, limit: Any) -> None:
        if isinstance(limit, Tensor):
            if not limit.is_floating_point():
                raise TypeError(f"{name}: expected a floating-point tensor, got {limit.dtype}. Pass it as .float()")
        elif isinstance(limit, bool) or not isinstance(limit, int | float | np.floating):
            raise TypeError(f"{name}: expected a number or a tensor, got {type(limit).__name__}. Pass lists as torch.tensor(...)")
        self.name, self.limit = name, limit

    @abstractmethod
    def __call__(self, gradients: Sequence[Tensor], limit: Tensor) -> list[Tensor]:
        """The clipped gradients, one or more, of the same dtypes and shapes.

        Args:
            gradients: of all trained weights.
            limit: of this step, a scalar.
        """

    def resolve(self, steps: range, device: torch.device) -> Tensor:
        """The limits on ``device``, attached to what was given: one for all steps, or one per step. Reads them.

        Args:
            steps: of the run. One that continues another may be given limits from step 0 on.
            device: of the first weight.

        Raises:
            ValueError: for another shape, and for numbers that make no sense. It names the argument.
        """
        given = self.limit if isinstance(self.limit, Tensor) else torch.tensor(float(self.limit), dtype=torch.float64)
        counts = dict.fromkeys((len(steps), steps.stop))
        if given.ndim > 1 or (given.ndim == 1 and len(given) not in counts):
            per_step = " or ".join(f"({count},)" for count in counts)
            raise ValueError(
                f"{self.name}: expected a number, or a tensor of shape () or {per_step}, one per step; got shape "
                f"{tuple(given.shape)}. There is no limit per weight"
            )
        bad = given.detach()[~((given > 0) & given.isfinite())].reshape(-1)
        if len(bad):
            raise ValueError(
                f"{self.name}: expected finite numbers above 0, got {bad[0].item():g}. To learn one, pass its logarithm's exp(); "
                "to clip nothing, leave clip= out"
            )
        return given.to(device)

    def _shown(self) -> str:
        return f"tensor of shape {tuple(self.limit.shape)}" if isinstance(self.limit, Tensor) else repr(float(self.limit))


class _Norm(Clip):
    def __init__(self, max_norm: Any, norm_type: Any) -> None:
        super().__init__("max_norm", max_norm)
        if isinstance(norm_type, bool) or not isinstance(norm_type, int | float) or norm_type not in (2, math.inf):
            raise ValueError(f"norm_type: expected 2 or math.inf, got {norm_type!r}")
        self.norm_type = float(norm_type)

    def __call__(self, gradients: Sequence[Tensor], limit: Tensor) -> list[Tensor]:
        norm = self._norm(gradients, limit.device)
        # Finite gradients whose norm overflows would all become 0 without a word. As NaNs they are refused by the step.
        norm = torch.where(norm.isfinite(), norm, math.nan)
        factor = (limit.to(norm.dtype) / (norm + 1e-6)).clamp(max=1.0)
        return [(_wide(g) * factor.to(g.device, _wide_type(g))).to(g.dtype) for g in gradients]

    def _norm(self, gradients: Sequence[Tensor], device: torch.device) -> Tensor:
        """Of all gradients, float64. Its derivative at 0 is 0.

        Squares of one tensor are added in its own precision, 16 bits in float32: torch adds up in pairs there, to some 1e-7. Its
        vector_norm does not, and is off by 5 % for 100 million equal float32 numbers.
        """
        present = [_wide(g) for g in gradients if g.numel()]
        if not present:
            return torch.zeros((), dtype=torch.float64, device=device)
        largest = self.norm_type == math.inf
        each = torch.stack([(g.abs().amax() if largest else g.square().sum()).to(device, torch.float64) for g in present])
        return each.amax() if largest else root(each.sum())

    def __repr__(self) -> str:
        return f"clip_norm({self._shown()}, norm_type={self.norm_type})"


class _Value(Clip):
    def __init__(self, max_value: Any) -> None:
        super().__init__("max_value", max_value)

    def __call__(self, gradients: Sequence[Tensor], limit: Tensor) -> list[Tensor]:
        limits = [limit.to(g.device, g.dtype) for g in gradients]
        return [g.clamp(-own, own) for g, own in zip(gradients, limits, strict=True)]

    def __repr__(self) -> str:
        return f"clip_value({self._shown()})"


def _wide_type(gradient: Tensor) -> torch.dtype:
    """A factor of 16 bits would have three digits."""
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(_wide_type(gradient))


def check_gradient_options(clip: Any, accumulate: Any) -> None:
    """Raises TypeError or ValueError for what no gradient can be clipped by or cut into."""
    if clip is not None and not isinstance(clip, Clip):
        raise TypeError(f"clip: expected rh.clip_norm(...), rh.clip_value(...) or None, got {clip!r}")
    check_integer("accumulate", accumulate, least=1)


def clip_norm(max_norm: float | Tensor, norm_type: float = 2.0) -> Clip:
    """For ``train(clip=...)``: scales all gradients of a step by one factor, so that their norm is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``: the factor is ``min(1, max_norm / (norm + 1e-6))``, with the norm of the gradients of
    all trained weights as one vector, before any weight decay of the optimizer. It is differentiated as all else is: a clipped
    gradient's derivative is the loss's second derivative times the clip's own derivative, whose part along the gradient is gone.

    Args:
        max_norm: a number above 0, or a tensor of shape () or (steps,), one per step. If it requires grad it gets its
            hypergradient, which comes from the steps that were clipped; where none was, it is 0.
        norm_type: 2, or math.inf for the largest magnitude.

    Returns:
        What ``clip`` takes.

    Raises:
        TypeError: if ``max_norm`` is neither a number nor a floating-point tensor.
        ValueError: for another ``norm_type``; from ``train`` for another shape, or numbers that are not finite and above 0.

    Squares are added up within a tensor in its own precision (of 16-bit weights in float32), all tensors' sums in float64 on the
    device of the first weight. Gradients that are all 0 stay so, and so do their derivatives. A norm beyond the range of numbers
    is a FloatingPointError of the step, as a gradient that is not finite is. With micro-batches it is their mean that is clipped.

    Cost: four passes over the gradients and one copy of them, and about as much again on the way back. No host waits for a GPU.

    >>> import torch, reversible_hypergrad as rh
    >>> log_norm = torch.tensor(-2.0, requires_grad=True)
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(20, 8, 3)
    >>> def loss(model, x, _):
    ...     return (model(x) - 5).square().mean()
    >>> trained = rh.train(model, loss, data, optimizer=rh.SGD(lr=0.1), clip=rh.clip_norm(log_norm.exp()))
    >>> trained["weight"].square().sum().backward()
    >>> trained.report.restored, bool(log_norm.grad != 0)
    (True, True)

    Source: Pascanu, Mikolov, Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
    """
    return _Norm(max_norm, norm_type)


def clip_value(max_value: float | Tensor) -> Clip:
    """For ``train(clip=...)``: puts every element of every gradient into [-``max_value``, ``max_value``].

    As ``torch.nn.utils.clip_grad_value_``, before any weight decay of the optimizer. Elements outside have derivative 0 by
    weights and hyperparameters, and 1 or -1 by ``max_value``.

    Args:
        max_value: a number above 0, or a tensor of shape () or (steps,), one per step. If it requires grad it gets its
            hypergradient. It is rounded to each weight's dtype.

    Returns:
        What ``clip`` takes.

    Raises:
        TypeError: if ``max_value`` is neither a number nor a floating-point tensor.
        ValueError: from ``train`` for another shape, or numbers that are not finite and above 0.

    Cost: one pass over the gradients and one copy of them, and about as much again on the way back.

    >>> import torch, reversible_hypergrad as rh
    >>> rh.clip_value(0.5)
    clip_value(0.5)

    Source: ``torch.nn.utils.clip_grad_value_``.
    """
    return _Value(max_value)
