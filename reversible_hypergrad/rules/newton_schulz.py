"""The orthogonal factor of a matrix, nearly, by products alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Coefficients", "check_iteration", "orthogonal"]

Coefficients = Sequence[float]
_DTYPES = (None, torch.bfloat16, torch.float32, torch.float64)


def orthogonal(v: Tensor, coefficients: Coefficients, eps: float, steps: int, dtype: torch.dtype | None) -> Tensor:
    """Near the orthogonal factor of ``v``, in the dtype of ``v``, as torch.optim.Muon has it.

    Its derivative is that of the iteration in the dtype of ``v``, at ``v``: rounding to ``dtype`` has none that means anything,
    and autograd through bfloat16 keeps two digits, which sums over a trajectory lose.

    Args:
        coefficients: of X, X X' X and (X X')^2 X.
        eps: ``v`` is divided by no less.
        steps: how many.
        dtype: of the iteration; None: float64 if that is the dtype of ``v``, else bfloat16.
    """
    dtype = dtype or (torch.float64 if v.dtype == torch.float64 else torch.bfloat16)
    differentiated = v.requires_grad or forward_ad.unpack_dual(v).tangent is not None  # type: ignore[no-untyped-call]
    if dtype == v.dtype or not differentiated:
        return _iterated(v.to(dtype), coefficients, eps, steps).to(v.dtype)
    smooth = _iterated(v, coefficients, eps, steps)
    value = _iterated(v.to(dtype), coefficients, eps, steps).to(v.dtype)
    return _ValueOfSecond.apply(smooth, value)  # type: ignore[no-untyped-call, no-any-return]


def _iterated(v: Tensor, coefficients: Coefficients, eps: float, steps: int) -> Tensor:
    a, b, c = coefficients
    tall = v.shape[0] > v.shape[1]
    x = v.T if tall else v
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class _ValueOfSecond(torch.autograd.Function):
    """The second argument, with the derivative of the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent.clone()


def check_iteration(coefficients: Any, eps: Any, steps: Any, dtype: Any) -> None:
    """Raises TypeError or ValueError, naming the argument, for what :func:`orthogonal` cannot do."""
    if not isinstance(coefficients, Sequence) or len(coefficients) != 3:
        raise ValueError(f"ns_coefficients: expected three numbers, got {coefficients!r}")
    if not eps > 0:
        raise ValueError(f"eps: expected a number > 0, got {eps}")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"ns_steps: expected an integer from 1 to 99, got {steps!r}")
    if not 1 <= steps <= 99:
        raise ValueError(f"ns_steps: expected an integer from 1 to 99, got {steps}")
    if dtype not in _DTYPES:
        raise ValueError(f"ns_dtype: expected torch.bfloat16, torch.float32, torch.float64 or None, got {dtype}")
