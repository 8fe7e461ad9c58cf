"""Lion, whose updates are signs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.rules.base import LEAST_FACTOR, Rule, SettingSpec
from reversible_hypergrad.rules.settings import Given, pair

__all__ = ["Lion"]


class Lion(Rule):
    """Evolved sign momentum, in training and in hypergradients::

        u = sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        w = (1 - lr * weight_decay) * w - lr * u

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape () or (steps,), or a dict of these by parameter name or pattern.
        betas: of the sign, in [0, 1), and of the momentum, in [2^-16, 1), as ``lr``.
        weight_decay: >= 0, as ``lr``. To undo steps, lr * weight_decay must stay below 1.

    ``lr`` and ``weight_decay`` may require grad: then ``backward`` gives their exact derivative. Signs are constant but where
    they jump, so that of ``betas`` is 0, and none flows through the gradients of the loss: hyperparameters of the loss have
    derivative 0, too, and the initial weights that of the weights' decays.

    Cost: one state. The sign contains the gradient, so it is kept: with :class:`Reversible` 1 + log2(1/beta2) bits per weight and
    step, 1.0145 at the defaults, and another bit in steps where a tensor has signs that are 0, as those of weights without a
    gradient. Beside it 4 bytes per weight and the weights' own integers of 4 (16 in all with ``state_bits=64``). A step is made
    of torch's operations, some dozens of passes over memory.

    Raises:
        TypeError: for settings that are no numbers or tensors.
        ValueError: from :func:`train`, for numbers and shapes that make no sense. It names the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.Lion(lr=1e-4, weight_decay=0.1)
    Lion(lr=0.0001, beta1=0.9, beta2=0.99, weight_decay=0.1)

    Source: Chen, Liang, Huang, Real, Wang, Pham, Dong, Luong, Hsieh, Lu, Le, *Symbolic Discovery of Optimization Algorithms*,
    NeurIPS 2023, algorithm 2.
    """

    states: ClassVar[Mapping[str, int]] = {"m": 1}
    headroom: ClassVar[Mapping[str, int]] = {"m": 1}  # the sign of a small number counts as much as that of a large one
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(1e-4),
        "beta1": SettingSpec(0.9, high=1.0, below=True),
        "beta2": SettingSpec(0.99, low=LEAST_FACTOR, high=1.0, below=True),
        "weight_decay": SettingSpec(0.0),
    }
    elementwise = True

    def __init__(self, lr: Given = 1e-4, betas: Sequence[Given] = (0.9, 0.99), weight_decay: Given = 0.0) -> None:
        beta1, beta2 = pair("betas", betas)
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        return {"m": h.beta2, "weight": 1 - h.lr * h.weight_decay}

    def signs(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Tensor:
        return torch.sign(h.beta1 * (z["m"] / h.beta2) + (1 - h.beta1) * g)  # the momentum has decayed already

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield "m", (1 - h.beta2) * g

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        return h.lr * logged  # type: ignore[no-any-return]
