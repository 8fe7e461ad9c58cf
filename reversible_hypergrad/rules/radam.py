"""RAdam, as torch writes it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.functions import root
from reversible_hypergrad.rules.settings import Given, pair

__all__ = ["RAdam"]


class RAdam(Rule):
    """Rectified Adam as :class:`torch.optim.RAdam`, in training and in hypergradients::

        g = grad + weight_decay * w                  with decoupled_weight_decay:  w = (1 - lr * weight_decay) * w  instead
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g * g
        rho = r - 2 t beta2^t / (1 - beta2^t),  r = 2 / (1 - beta2) - 1                             t = 1, 2, ...
        w = w - lr / (1 - beta1^t) * m                                                              while rho <= 5, then
        w = w - lr / (1 - beta1^t) * m * sqrt((rho - 4)(rho - 2) r / ((r - 4)(r - 2) rho)) * sqrt(1 - beta2^t) / (sqrt(s) + eps)

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape (), (steps,) or, unless the decay is decoupled, of the weight's
            own shape, or a dict of these by parameter name or pattern.
        betas: the two decays, each in [0, 1): a number, or a tensor of shape () or (steps,), or a dict of these. To undo steps,
            each must be at least 2^-16.
        eps: >= 0, as ``betas``. Where weights never get a gradient it must not be 0.
        weight_decay: >= 0, as ``lr``.
        decoupled_weight_decay: whether the weights decay by themselves. To undo steps, lr * weight_decay must stay below 1 then.

    Each but the last may require grad: then ``backward`` gives its exact derivative; the step from which on rho > 5 counts as
    given. Where s = 0 the root's share in it is 0, see :class:`Adam`.

    Cost: as :class:`Adam`: two states, and 0.153 bits per weight and step at the defaults. A step is made of torch's operations,
    some dozens of passes over memory.

    Raises:
        TypeError: for settings that are no numbers or tensors, and a ``decoupled_weight_decay`` that is no bool.
        ValueError: from :func:`train`, for numbers and shapes that make no sense. It names the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.RAdam(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, decoupled_weight_decay=True)
    RAdam(lr=0.001, beta1=0.9, beta2=0.99, eps=1e-08, weight_decay=0.01, decoupled_weight_decay=True)

    Source: Liu, Jiang, He, Chen, Liu, Gao, Han, *On the Variance of the Adaptive Learning Rate and Beyond*, ICLR 2020, algorithm
    2, in torch's form.
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
    }
    elementwise = True

    def __init__(
        self,
        lr: Given = 1e-3,
        betas: Sequence[Given] = (0.9, 0.999),
        eps: Given = 1e-8,
        weight_decay: Given = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        beta1, beta2 = pair("betas", betas)
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
        if not isinstance(decoupled_weight_decay, bool):
            raise TypeError(f"decoupled_weight_decay: expected True or False, got {decoupled_weight_decay!r}")
        self.decoupled = decoupled_weight_decay
        if self.decoupled:  # decays of one tensor's weights have one scale
            alike = {name: replace(self.settings[name], per_weight=False) for name in ("lr", "weight_decay")}
            self.settings = {**self.settings, **alike}  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, decoupled_weight_decay={self.decoupled})"

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        factors = {"m": h.beta1, "s": h.beta2}
        if self.decoupled:
            factors["weight"] = 1 - h.lr * h.weight_decay
        return factors

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        total = g if self.decoupled else g + h.weight_decay * w
        yield "m", (1 - h.beta1) * total
        yield "s", (1 - h.beta2) * (total * total)

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        step = h.lr / (1 - h.beta1 ** (t + 1))
        rectified = _rectification(h.beta2, t + 1)
        if rectified is None:
            return step * z["m"]  # type: ignore[no-any-return]
        return step * rectified * z["m"] / (root(z["s"]) + h.eps)  # type: ignore[no-any-return]

    def below_eps(self, h: Any, t: int, z: Mapping[str, Tensor]) -> Tensor | None:
        return None if _rectification(h.beta2, t + 1) is None else root(z["s"]) < h.eps


def _rectification(beta2: Any, t: int) -> Any:
    """What the adaptive step is multiplied by, its bias correction included; None: there is no adaptive step yet."""
    left = 1 - beta2**t
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * t * beta2**t / left
    if not rho > 5:
        return None
    return ((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho) * left) ** 0.5
