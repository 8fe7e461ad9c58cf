"""LARS: SGD with momentum whose steps are measured by the norms of each tensor."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.settings import Given

__all__ = ["LARS"]


class LARS(Rule):
    """Layer-wise adaptive rate scaling, for each tensor by itself, in training and in hypergradients::

        ratio = trust * |w| / (|g| + weight_decay * |w| + eps)                  1 for a tensor that is all zeros
        v = momentum * v + lr * ratio * (g + weight_decay * w)
        w = w - v

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape (), (steps,) or of the weight's own shape, or a dict of these by
            parameter name or pattern.
        momentum: in [0, 1]: a number, or a tensor of shape () or (steps,), or a dict of these. To undo steps, at least 2^-16.
        weight_decay: a penalty, >= 0, as ``momentum``.
        trust: >= 0, as ``momentum``: the paper's eta.
        eps: >= 0, as ``momentum``.

    Each may require grad: then ``backward`` gives its exact derivative, that of the norms included. A tensor that begins as
    zeros, such as a bias, would never move by the paper's formula; its ratio is 1, as in implementations.

    Cost: one state; with :class:`Reversible` log2(1/momentum) bits per weight and step, 0.152 at the default, and 4 bytes per
    weight beside the weights' own integers of 4 (16 in all with ``state_bits=64``). A step is made of torch's operations, one
    tensor after the other.

    Raises:
        TypeError: for settings that are no numbers or tensors, and a missing ``lr``.
        ValueError: from :func:`train`, for numbers that make no sense. It names the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.LARS(lr=1.0, weight_decay=1e-4)
    LARS(lr=1.0, momentum=0.9, weight_decay=0.0001, trust=0.001, eps=1e-08)

    Source: You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks*, 2017, equation 6 and algorithm 1; ``eps`` as
    in implementations.
    """

    states: ClassVar[Mapping[str, int]] = {"v": 0}
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(per_weight=True),
        "momentum": SettingSpec(0.9, high=1.0),
        "weight_decay": SettingSpec(0.0),
        "trust": SettingSpec(1e-3),
        "eps": SettingSpec(1e-8),
    }

    def __init__(
        self, lr: Given, momentum: Given = 0.9, weight_decay: Given = 0.0, trust: Given = 1e-3, eps: Given = 1e-8
    ) -> None:
        super().__init__(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, eps=eps)

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        return {"v": h.momentum}

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        size = torch.linalg.vector_norm(w)
        below = torch.linalg.vector_norm(g) + h.weight_decay * size + h.eps
        ratio = h.trust * size / torch.where(below > 0, below, 1.0)
        yield "v", h.lr * torch.where(size > 0, ratio, 1.0) * (g + h.weight_decay * w)

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        return z["v"]
