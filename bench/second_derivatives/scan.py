"""The derivative of a gradient by torch beside differences of the gradient in float64, one case at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.second_derivatives.cases import Case
from bench.second_derivatives.functions import FUNCTIONS
from bench.second_derivatives.layers import LAYERS
from bench.second_derivatives.losses import LOSSES

__all__ = ["CASES", "TOLERANCE", "Finding", "scan", "value"]

CASES: dict[str, Case] = {**LAYERS, **LOSSES, **FUNCTIONS}
# Differences of fourth order leave some h^4 of truncation and 1e-16 / h of rounding, both about 1e-12 of the gradient at this h.
# Beside it, float32 products have their own rounding. A wrong formula is wrong in the first digits.
H = 1e-4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_TRIES = 20  # a case is drawn anew if a kink, as of ReLU, lies within 2 H of where it is


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        verdict: "right", "wrong", "missing", or "on a jump" where differences say nothing: the gradient jumps at every draw.
        error: of the products, relatively; None if there are none.
        message: what torch raises, if it gives none.
    """

    verdict: str
    error: float | None = None
    message: str = ""


def value(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """A scalar whose derivative by each output depends on all variables, so that all of a double backward is in use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # dropout
        outputs = module(*inputs)
    found = [y for y in _flat(outputs) if y.is_floating_point() and y.requires_grad]
    return sum((torch.linspace(0.5, 1.5, y.numel()).to(y).reshape(y.shape) * (y + 0.3).sin()).sum() for y in found)  # type: ignore[return-value]


def _flat(nest: Any) -> list[Tensor]:
    if isinstance(nest, Tensor):
        return [nest]
    return [leaf for part in nest or () for leaf in _flat(part)]


def scan(case: Case, dtype: torch.dtype = torch.float64) -> Finding:
    """Products in ``dtype`` against differences in float64, under the attention kernel that runs use."""
    with sdpa_kernel(SDPBackend.MATH):
        for seed in range(_TRIES):
            module, inputs = case.drawn(seed)
            direction, change = _change(module, inputs)
            if change is not None:
                break
        else:
            return Finding("on a jump")
        module, inputs = case.drawn(seed)
        module, inputs = module.to(dtype), [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        try:
            products = _products(module, inputs, direction)
        except (RuntimeError, NotImplementedError) as error:
            return Finding("missing", message=str(error).splitlines()[0])
    size = max(_norm(change), 1e-3 * _norm(direction))  # of order 1 by itself; zero derivatives must come out as such, too
    error = _norm([p.double() - c for p, c in zip(products, change, strict=True)]) / size
    return Finding("right" if error <= TOLERANCE[dtype] else "wrong", error)


def _variables(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    own = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    return [*own, *(p for p in module.parameters() if p.requires_grad)]


def _gradient(module: nn.Module, inputs: Sequence[Tensor], variables: Sequence[Tensor], graph: bool) -> list[Tensor]:
    found = torch.autograd.grad(value(module, inputs), variables, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, variables, strict=True)]


def _products(module: nn.Module, inputs: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian, which is symmetric, times ``direction``."""
    variables = _variables(module, inputs)
    gradient = _gradient(module, inputs, variables, graph=True)
    total = sum((g * d.to(g)).sum() for g, d in zip(gradient, direction, strict=True) if g.requires_grad)
    if not isinstance(total, Tensor):
        return [torch.zeros_like(x) for x in variables]
    found = torch.autograd.grad(total, variables, allow_unused=True)
    return [torch.zeros_like(x) if p is None else p for p, x in zip(found, variables, strict=True)]


def _change(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
    """A direction, and the gradient's derivative along it; None if it has a kink near by, as two distances tell."""
    variables = _variables(module, inputs)
    start = [x.detach().clone() for x in variables]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in variables]

    def at(distance: float) -> list[Tensor]:
        with torch.no_grad():
            for x, begin, d in zip(variables, start, direction, strict=True):
                x.copy_(begin + distance * d)
        return [g.detach() for g in _gradient(module, inputs, variables, graph=False)]

    def quotient(h: float) -> list[Tensor]:
        near, far = (at(h), at(-h)), (at(2 * h), at(-2 * h))
        return [(8 * (a - b) - (c - d)) / (12 * h) for a, b, c, d in zip(*near, *far, strict=True)]

    wide, narrow = quotient(H), quotient(H / 2)
    apart = _norm([a - b for a, b in zip(wide, narrow, strict=True)])
    return direction, narrow if apart <= 1e-7 * max(_norm(narrow), _norm(direction)) else None


def _norm(vectors: Sequence[Tensor]) -> float:
    return float(sum(x.double().square().sum() for x in vectors) ** 0.5)
