"""Adam and AdamW, as torch writes them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.functions import root
from reversible_hypergrad.rules.settings import Given, Resolved, pair

__all__ = ["Adam", "AdamW"]


class Adam(Rule):
    """Adam as :class:`torch.optim.Adam`, with weight decay as a penalty, in training and in hypergradients::

        g = grad + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g * g
        w = w - lr / (1 - beta1^t) * m / (sqrt(s / (1 - beta2^t) + eps_root) + eps)            t = 1, 2, ...

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape (), (steps,) or of the weight's own shape, or a dict of these by
            parameter name or pattern.
        betas: the two decays, each in [0, 1): a number, or a tensor of shape () or (steps,), or a dict of these. To undo steps,
            each must be at least 2^-16.
        eps: >= 0, as ``betas``. Where weights never get a gradient it must not be 0.
        weight_decay: >= 0, as ``lr``.
        eps_root: >= 0, as ``eps``; torch has 0. It bounds the derivative of the root, see below.

    Each may require grad: then ``backward`` gives its exact derivative.

    Derivatives where s = 0: a weight that never had a gradient, as that of a pixel that is never lit, has m = s = 0. The step is
    differentiable there, and the root's share in the derivative is 0; autograd of torch's formula gives NaN. What is left, lr /
    ((1 - beta1^t) eps), is true and of use for changes below eps only: with ``eps_root`` > 0 or a larger ``eps`` it is smaller.
    ``report.weights_below_eps`` says how many such weights there are.

    Cost: two states; with :class:`Reversible` log2(1/beta1) + log2(1/beta2) bits per weight and step, 0.153 at the defaults, and
    12 bytes per weight beside it (16 with the weights' own integers), or 24 with ``state_bits=64``.

    Raises:
        TypeError: for settings that are no numbers or tensors.
        ValueError: from :func:`train`, for numbers that make no sense. It names the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.Adam(lr=1e-3, betas=(0.9, 0.99))
    Adam(lr=0.001, beta1=0.9, beta2=0.99, eps=1e-08, weight_decay=0.0, eps_root=0.0)

    Source: Kingma, Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, algorithm 1; ``eps_root`` as in optax.
    """

    states: ClassVar[Mapping[str, int]] = {"m": 1, "s": 2}
    # A weight moves by about lr whatever the size of its gradients, so small ones count, too.
    headroom: ClassVar[Mapping[str, int]] = {"m": 1}
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(1e-3, per_weight=True),
        "beta1": SettingSpec(0.9, high=1.0, below=True),
        "beta2": SettingSpec(0.999, high=1.0, below=True),
        "eps": SettingSpec(1e-8),
        "weight_decay": SettingSpec(0.0, per_weight=True),
        "eps_root": SettingSpec(0.0),
    }
    elementwise = True
    program = "adam"
    sums_before = ((3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0), ("weight", 1.0))
    sums_after = ((0, 1.0), (1, 1.0), (2, 1.0), ("m", 1.0), ("s", 1.0))
    decoupled: ClassVar[bool] = False  # weight decay

    def __init__(
        self,
        lr: Given = 1e-3,
        betas: Sequence[Given] = (0.9, 0.999),
        eps: Given = 1e-8,
        weight_decay: Given = 0.0,
        *,
        eps_root: Given = 0.0,
    ) -> None:
        beta1, beta2 = pair("betas", betas)
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, eps_root=eps_root)

    def decay(self, h: Any, t: Any) -> Mapping[str, Any]:
        factors = {"m": h.beta1, "s": h.beta2}
        if self.decoupled and not _per_weight(h.lr):
            factors["weight"] = 1 - h.lr * h.weight_decay
        return factors

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        total = g if self.decoupled else g + h.weight_decay * w
        yield "m", (1 - h.beta1) * total
        yield "s", (1 - h.beta2) * (total * total)

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        _, _, _, step, scale, eps, root_eps = self.numbers(h, t)
        denominator = root(z["s"] + root_eps) * scale + eps
        return step * z["m"] / denominator  # type: ignore[no-any-return]

    def below_eps(self, h: Any, t: int, z: Mapping[str, Tensor]) -> Tensor:
        _, _, _, _, scale, eps, root_eps = self.numbers(h, t)
        below: Tensor = root(z["s"] + root_eps) * scale < eps
        return below

    def numbers(self, h: Any, t: Any) -> tuple[Any, ...]:
        left1, left2 = 1 - h.beta1 ** (t + 1), 1 - h.beta2 ** (t + 1)
        decay = 0.0 if self.decoupled else h.weight_decay
        return 1 - h.beta1, 1 - h.beta2, decay, h.lr / left1, left2**-0.5, h.eps, h.eps_root * left2


class AdamW(Adam):
    """Adam with decoupled weight decay as :class:`torch.optim.AdamW`, in training and in hypergradients::

        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g * g
        w = (1 - lr * weight_decay) * w - lr / (1 - beta1^t) * m / (sqrt(s / (1 - beta2^t) + eps_root) + eps)       t = 1, 2, ...

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape (), (steps,) or of the weight's own shape (then without weight
            decay), or a dict of these by parameter name or pattern.
        betas: the two decays, each in [0, 1): a number, or a tensor of shape () or (steps,), or a dict of these. To undo steps,
            each must be at least 2^-16.
        eps: >= 0, as ``betas``. Where weights never get a gradient it must not be 0.
        weight_decay: >= 0, as ``betas``. To undo steps, lr * weight_decay must stay below 1.
        eps_root: >= 0, as ``eps``; torch has 0.

    Each may require grad: then ``backward`` gives its exact derivative; where s = 0, see :class:`Adam`.

    Cost: as :class:`Adam`, and log2(1 / (1 - lr * weight_decay)) bits more per weight and step: 1e-5 at the defaults.

    Raises:
        TypeError: for settings that are no numbers or tensors.
        ValueError: from :func:`train`, for numbers that make no sense, and for weight decay with a learning rate per weight,
            whose decays would differ from weight to weight. It names the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.AdamW(lr=1e-3, weight_decay=0.1)
    AdamW(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.1, eps_root=0.0)

    Source: Loshchilov, Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019, algorithm 2, in torch's form.
    """

    settings: ClassVar[Mapping[str, SettingSpec]] = {**Adam.settings, "weight_decay": SettingSpec(1e-2)}
    decoupled = True

    def __init__(
        self,
        lr: Given = 1e-3,
        betas: Sequence[Given] = (0.9, 0.999),
        eps: Given = 1e-8,
        weight_decay: Given = 1e-2,
        *,
        eps_root: Given = 0.0,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, eps_root=eps_root)

    def resolve(self, names: Sequence[str], weights: Sequence[Tensor], steps: range) -> Resolved:
        resolved = super().resolve(names, weights, steps)
        for name, own in zip(names, resolved.settings, strict=True):
            decay = own["weight_decay"]
            if own["lr"].elementwise is not None and (any(decay.numbers) or decay.source is not None):
                raise ValueError(
                    f"weight_decay: expected 0 for {name!r}, whose learning rate has a value per weight: their decays 1 - lr * "
                    "weight_decay would have no common scale. Pass weight_decay=0, or use rh.Adam, whose decay is a penalty"
                )
        return resolved


def _per_weight(value: Any) -> bool:
    """Whether a setting has a value per weight; where there is none to be read, it is NaN."""
    return value.dim() > 0 if isinstance(value, Tensor) else math.isnan(value)
