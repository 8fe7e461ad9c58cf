"""Losses that compute in fewer digits than float32 has: right, and far from the exact hypergradient, which a run says once."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.gradients.autograd_graph import nodes_of
from reversible_hypergrad.gradients.loss_checks import check_second_derivative

__all__ = ["CheckedOnce"]

# By bench.precision, example weights, 200 steps: of SGD(0.02), and of AdamW with eps=1e-4. The rest is in its results.
_MEASURED = {"bfloat16": (2, 6), "bf16": (1, 6), "float16": (0.2, 4), "tf32": (0.1, 1)}
# By the setting that shortens them: how the names of their nodes begin.
_PRODUCTS = {
    "matmul": ("Addmm", "Mm", "Bmm", "Baddbmm", "Mv", "Addmv"),
    "conv": ("Convolution", "CudnnConvolution", "MkldnnConvolution"),
    "rnn": ("CudnnRnn", "MkldnnRnn"),
}


class CheckedOnce:
    """What a run looks at in the first loss and its gradients: second derivatives must be there, and few digits are a
    RuntimeWarning, once for all losses of the run that have the same.

    Args:
        differentiates: whether the run may be differentiated; if not, it asks for no second derivatives.
    """

    def __init__(self, differentiates: bool = True) -> None:
        self._said: set[str] = set()
        self._differentiates = differentiates

    def __call__(self, loss: Tensor, gradients: Sequence[Tensor | None], *known: Any) -> None:
        if self._differentiates:
            check_second_derivative(loss, gradients, *known)
        for kind, what, remedy in (*_short_numbers(loss, gradients), *_short_products(loss)):
            if what not in self._said:
                self._said.add(what)
                warnings.warn(f"loss: it computes {what}. {_measured(kind)}{remedy}", RuntimeWarning, stacklevel=3)


def _measured(kind: str) -> str:
    if kind not in _MEASURED:
        return ""
    sgd, adam = _MEASURED[kind]
    return (
        f"Hypergradients of a small transformer were then {sgd} % off float64's after 200 steps of SGD, and {adam} % of AdamW "
        "with eps=1e-4; near chaos, and with the default eps, they were noise (docs/limits.md, Precision). "
    )


def _short_numbers(loss: Tensor, gradients: Sequence[Tensor | None]) -> Iterator[tuple[str, str, str]]:
    found = {own.dtype for node in nodes_of([loss, *gradients]) for own in node._input_metadata}
    for dtype in sorted(map(str, (d for d in found if d.is_floating_point and d.itemsize < 4))):
        yield (
            dtype.removeprefix("torch."),
            f"in {dtype} (autocast, a cast, or weights of {dtype})",
            "Give train() a float32 model, and leave autocast out of the loss and away from train(); or compare with such a run",
        )


def _short_products(loss: Tensor) -> Iterator[tuple[str, str, str]]:
    """Where a setting lets float32 be rounded before it is multiplied, and the machine does it."""
    backends: Any = torch.backends
    if loss.is_cuda:
        places = {"cuda.matmul": backends.cuda.matmul, "cudnn.conv": backends.cudnn.conv, "cudnn.rnn": backends.cudnn.rnn}
    elif torch.ops.mkldnn._is_mkldnn_bf16_supported():
        places = {f"mkldnn.{name}": getattr(backends.mkldnn, name) for name in _PRODUCTS}
    else:
        places = {}
    rounding = ("tf32", "bf16") if loss.is_cuda else ("bf16",)  # CPUs take TF32 for float32
    kinds = {node.name() for node in nodes_of([loss]) if any(own.dtype == torch.float32 for own in node._input_metadata)}
    for name, place in places.items():
        if place.fp32_precision in rounding and any(kind.startswith(_PRODUCTS[name.split(".")[1]]) for kind in kinds):
            legacy = ', or torch.set_float32_matmul_precision("highest"),' if name.endswith("matmul") else ""
            yield (
                place.fp32_precision,
                f"products of float32 in {place.fp32_precision}, as torch.backends.{name}.fp32_precision says",
                f'Set torch.backends.{name}.fp32_precision = "ieee"{legacy} before train()',
            )
