"""RMSprop with momentum, as torch writes it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.functions import root
from reversible_hypergrad.rules.settings import Given

__all__ = ["RMSprop"]

# A variance is no smaller a part of the mean square: below, the difference is rounding in float32, and may be negative.
_LEAST_VARIANCE = 2.0**-20


class RMSprop(Rule):
    """RMSprop with momentum as :class:`torch.optim.RMSprop`, in training and in hypergradients::

        g = grad + weight_decay * w
        s = alpha * s + (1 - alpha) * g * g                  with centered also  a = alpha * a + (1 - alpha) * g
        b = momentum * b + g / (sqrt(s) + eps)               then  b = momentum * b + g / (sqrt(s - a * a) + eps)
        w = w - lr * b

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape (), (steps,) or of the weight's own shape, or a dict of these by
            parameter name or pattern.
        alpha: decay of the mean of squares, in [0, 1): a number, or a tensor of shape () or (steps,), or a dict of these. To undo
            steps, at least 2^-16.
        eps: >= 0, as ``alpha``. Where weights never get a gradient it must not be 0.
        weight_decay: a penalty, >= 0, as ``lr``.
        momentum: in [0, 1], as ``alpha``; torch's default is 0. To undo steps, at least 2^-16: without momentum the update
            contains the gradient itself, which is known only where the weights are.
        centered: whether gradients are measured by their standard deviation. Where they hardly vary, s - a * a is rounding: it
            counts as 2^-20 of s at least, where torch's may be anything, or NaN.

    Each but the last may require grad: then ``backward`` gives its exact derivative. Where s = 0 the root's share in it is 0, see
    :class:`Adam`.

    Cost: two states; with :class:`Reversible` log2(1/alpha) + log2(1/momentum) bits per weight and step, 0.167 at the defaults,
    and 12 bytes per weight beside the weights' own integers of 4 (24 in all with ``state_bits=64``). ``centered`` takes another
    state of 4 (8) bytes, and log2(1/alpha) again. A step is made of torch's operations, some dozens of passes over memory.

    Raises:
        TypeError: for settings that are no numbers or tensors, and a ``centered`` that is no bool.
        ValueError: from :func:`train`, for numbers that make no sense. It names the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.RMSprop(lr=1e-3, momentum=0.8)
    RMSprop(lr=0.001, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.8, centered=False)

    Source: Hinton, *Neural Networks for Machine Learning*, lecture 6e, 2012; ``centered`` from Graves, *Generating
    Sequences With Recurrent Neural Networks*, 2013, equations 38 to 41; both in torch's form.
    """

    states: ClassVar[Mapping[str, int]] = {"s": 2, "b": 0}
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(1e-2, per_weight=True),
        "alpha": SettingSpec(0.99, high=1.0, below=True),
        "eps": SettingSpec(1e-8),
        "weight_decay": SettingSpec(0.0, per_weight=True),
        "momentum": SettingSpec(0.9, high=1.0),
    }
    elementwise = True

    def __init__(
        self,
        lr: Given = 1e-2,
        alpha: Given = 0.99,
        eps: Given = 1e-8,
        weight_decay: Given = 0.0,
        momentum: Given = 0.9,
        centered: bool = False,
    ) -> None:
        super().__init__(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
        if not isinstance(centered, bool):
            raise TypeError(f"centered: expected True or False, got {centered!r}")
        self.centered = centered
        if centered:
            self.states = {"s": 2, "a": 1, "b": 0}  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, centered={self.centered})"

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        return {"s": h.alpha, **({"a": h.alpha} if self.centered else {}), "b": h.momentum}

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        total = g + h.weight_decay * w
        yield "s", (1 - h.alpha) * (total * total)
        if self.centered:
            yield "a", (1 - h.alpha) * total
        yield "b", total / (self._root(z) + h.eps)

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        return h.lr * z["b"]  # type: ignore[no-any-return]

    def below_eps(self, h: Any, t: int, z: Mapping[str, Tensor]) -> Tensor:
        below: Tensor = self._root(z) < h.eps
        return below

    def _root(self, z: Mapping[str, Tensor]) -> Tensor:
        """Of the new mean square, or of the new variance."""
        if self.centered:
            return root(torch.maximum(z["s"] - z["a"] * z["a"], _LEAST_VARIANCE * z["s"]))
        return root(z["s"])

    def irreversible(self, settings: Sequence[Settings]) -> str | None:
        if any(number == 0 for of_one in settings for number in of_one["momentum"].numbers):
            return (
                "momentum: rh.Reversible() expected numbers in (0, 1], got 0: without momentum the update of RMSprop contains "
                "the gradient, which is known only where the weights are. Use a small momentum, or adjoint=rh.Checkpoint()"
            )
        return super().irreversible(settings)
