"""Whether a compiled gradient is the gradient: its values beside those of the loss as it is."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.problem.gradient import SideEffects

__all__ = ["Expected", "compare_products", "random_directions"]


class Expected:
    """Gradients and buffers of one step as the loss gives them by itself, and how far apart others may be.

    A compiler adds the same terms in another order, so a result may differ in its last digits: by the rounding of the coarsest
    numbers that the gradient is computed from, some times over. Other random numbers, or another count, change its first digits.
    In between lies the root of that rounding, half of the digits: 3e-4 of float32's gradients. Norms of all gradients together
    are compared, since one alone may be a sum of nothing but rounding, as that of a bias before a softmax.

    Args:
        evaluate: gives gradients and buffers of the loss as it is.
    """

    def __init__(self, evaluate: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]]) -> None:
        self._evaluate = evaluate
        self._eps = 0.0
        with torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor):
            states = torch.get_rng_state()
            gradients, buffers = evaluate()
        self._draws = not torch.equal(states, torch.get_rng_state())  # on a GPU it is not seen, and the error says less
        self._gradients, self._buffers = ([t.clone() for t in tensors] for tensors in (gradients, buffers))

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            self._eps = max(self._eps, torch.finfo(tensor.dtype).eps)
        return tensor.detach()  # not the very tensor, which would count as held by somebody

    def compare(self, step: int, gradients: Sequence[Tensor], buffers: Sequence[Tensor], before: SideEffects) -> None:
        """Raises RuntimeError if the compiled ``gradients`` or ``buffers`` of ``step`` are others.

        Args:
            step: of both.
            gradients: of the compiled function.
            buffers: likewise.
            before: of the step, to evaluate it again.
        """
        tolerance = math.sqrt(max(self._eps, *(torch.finfo(g.dtype).eps for g in self._gradients)))
        for what, mine, theirs in (("gradient", gradients, self._gradients), ("buffer", buffers, self._buffers)):
            apart = _apart(mine, theirs)
            if apart > tolerance:
                raise RuntimeError(
                    f"compile: at step {step} the compiled {what} is not what the loss gives by itself: {apart:.1e} of the norm "
                    f"apart, where rounding explains {tolerance:.0e}. {self._cause(what, before)}"
                )

    def _cause(self, what: str, before: SideEffects) -> str:
        before.put_back()
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002  (the global generator that a loss may draw from)
        gradients, buffers = self._evaluate()
        if not same_bits((gradients, buffers), (self._gradients, self._buffers)):
            return (
                "The loss or the model draws from Python's or NumPy's generator, or counts its calls; compiled, such numbers are "
                "frozen. Draw with torch, or in `batches`, or leave compile=True out"
            )
        if what == "buffer":
            return "Write buffers in place (copy_, mul_) and by torch alone, or leave compile=True out"
        if self._draws:
            return (
                "The compiled function draws other random numbers: inductor does unless fallback_random is on, which it is if "
                "you leave it out, and every backend does in a dropout of a tensor that is not contiguous, such as that of "
                "nn.TransformerEncoderLayer(batch_first=True). Call contiguous() before it, or leave compile=True out"
            )
        return (
            "The backend rounds much more coarsely than torch (for inductor see emulate_precision_casts in "
            "compile={'options': {...}}), or is wrong; or the gradient is nothing but rounding, as at a minimum. Leave "
            "compile=True out, or choose another backend"
        )


def random_directions(weights: Sequence[Tensor]) -> list[Tensor]:
    """The same ones whenever they are asked for."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(w.shape, generator=generator).to(w).as_strided(w.shape, w.stride()) for w in weights]


def compare_products(step: int | None, mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    """Raises RuntimeError if products of the same directions with second derivatives are not the same to rounding.

    They are derivatives of what is rounded already, and terms of both signs: a third of the digits must agree, all products
    together. A formula that is wrong changes the first ones.

    Args:
        step: for the error.
        mine: of the compiled function; None stands for zero.
        theirs: of the loss as it is.
    """
    own, others = [], []
    for a, b in zip(mine, theirs, strict=True):
        like = b if a is None else a
        if like is not None:
            own.append(torch.zeros_like(like) if a is None else a)
            others.append(torch.zeros_like(like) if b is None else b)
    tolerance = max((torch.finfo(b.dtype).eps for b in others), default=0.0) ** (1 / 3)
    apart = _apart(own, others)
    if apart > tolerance:
        raise RuntimeError(
            f"compile: {'' if step is None else f'at step {step} '}the compiled products with second derivatives are not those "
            f"that the loss has by itself: {apart:.1e} of the norm apart, where rounding explains {tolerance:.0e}. The backend "
            "is wrong, or rounds much more coarsely than torch. Leave compile=True out, or choose another backend"
        )


def _apart(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The distance in units of the norm; 0 where that is not finite, which the run itself reports."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if b.is_floating_point()]
    if any(not torch.equal(a, b) for a, b in zip(mine, theirs, strict=True) if not b.is_floating_point()):
        return math.inf
    norm, distance = _norm([b for _, b in pairs]), _norm([a.double() - b.double() for a, b in pairs])
    if not math.isfinite(norm) or distance == 0:
        return 0.0
    return distance / norm if norm and math.isfinite(distance) else math.inf


def _norm(tensors: Sequence[Any]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
