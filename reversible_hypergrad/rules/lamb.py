"""LAMB: Adam whose steps are measured by the norms of each tensor."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Settings
from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.functions import root
from reversible_hypergrad.rules.settings import Given, pair

__all__ = ["LAMB"]


class LAMB(Rule):
    """Layer-wise adaptive moments, for each tensor by itself, in training and in hypergradients::

        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g * g
        r = m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps) + weight_decay * w                     t = 1, 2, ...
        w = w - lr * |w| / |r| * r                                          the ratio is 1 where a norm is 0

    Args:
        lr: learning rate, >= 0: a number, or a tensor of shape (), (steps,) or of the weight's own shape, or a dict of these by
            parameter name or pattern.
        betas: the two decays, each in [0, 1): a number, or a tensor of shape () or (steps,), or a dict of these. To undo steps,
            each must be at least 2^-16.
        eps: >= 0, as ``betas``. Where weights never get a gradient it must not be 0.
        weight_decay: >= 0, as ``betas``. To undo steps it must be 0: the weights would decay by a factor that depends on data,
            ``1 - lr * |w| / |r| * weight_decay``, and the scale of reversible weights is known before a step. Put the penalty
            into the loss, or use :class:`Checkpoint`, :class:`RecursiveCheckpoint` or :class:`Snapshots`.

    Each may require grad: then ``backward`` gives its exact derivative, that of the norms included. Where s = 0 the root's share
    in it is 0, see :class:`Adam`.

    Cost: as :class:`Adam`: two states, 0.153 bits per weight and step at the defaults, and a ratio per tensor and step. A step is
    made of torch's operations, one tensor after the other.

    Raises:
        TypeError: for settings that are no numbers or tensors.
        ValueError: from :func:`train`, for numbers that make no sense, and for weight decay with :class:`Reversible`. It names
            the setting.

    >>> import reversible_hypergrad as rh
    >>> rh.LAMB(lr=2e-3)
    LAMB(lr=0.002, beta1=0.9, beta2=0.999, eps=1e-06, weight_decay=0.0)

    Source: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, *Large Batch Optimization for Deep Learning:
    Training BERT in 76 minutes*, ICLR 2020, algorithm 2 with the identity for phi.
    """

    states: ClassVar[Mapping[str, int]] = {"m": 1, "s": 2}
    headroom: ClassVar[Mapping[str, int]] = {"m": 1}  # as Adam's
    settings: ClassVar[Mapping[str, SettingSpec]] = {
        "lr": SettingSpec(1e-3, per_weight=True),
        "beta1": SettingSpec(0.9, high=1.0, below=True),
        "beta2": SettingSpec(0.999, high=1.0, below=True),
        "eps": SettingSpec(1e-6),
        "weight_decay": SettingSpec(0.0),
    }

    def __init__(
        self, lr: Given = 1e-3, betas: Sequence[Given] = (0.9, 0.999), eps: Given = 1e-6, weight_decay: Given = 0.0
    ) -> None:
        beta1, beta2 = pair("betas", betas)
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def decay(self, h: Any, t: int) -> Mapping[str, Any]:
        return {"m": h.beta1, "s": h.beta2}

    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield "m", (1 - h.beta1) * g
        yield "s", (1 - h.beta2) * (g * g)

    def logged(self, h: Any, t: int, w: Tensor, z: Mapping[str, Tensor]) -> Any:
        """The ratio, and the penalty that the direction contains: a tensor, so that it is not for runs that keep what is logged.
        These have none."""
        if self._decays(h):
            penalty = h.weight_decay * w
            return self._ratio(w, self._direction(h, t, z) + penalty), penalty
        return self._ratio(w, self._direction(h, t, z)), None

    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        ratio, penalty = logged
        direction = self._direction(h, t, z)
        return h.lr * ratio * (direction if penalty is None else direction + penalty)  # type: ignore[no-any-return]

    def below_eps(self, h: Any, t: int, z: Mapping[str, Tensor]) -> Tensor:
        below: Tensor = root(z["s"] / (1 - h.beta2 ** (t + 1))) < h.eps
        return below

    def irreversible(self, settings: Sequence[Settings]) -> str | None:
        decays = [of_one["weight_decay"] for of_one in settings]
        if any(decay.source is not None or any(decay.numbers) for decay in decays):
            return (
                "weight_decay: rh.Reversible() expected 0 with rh.LAMB, whose weights would decay by a factor that depends on "
                "data. Put the penalty into the loss and pass weight_decay=0.0, or use adjoint=rh.Checkpoint()"
            )
        return super().irreversible(settings)

    @staticmethod
    def _decays(h: Any) -> bool:
        return isinstance(h.weight_decay, Tensor) or h.weight_decay != 0

    @staticmethod
    def _direction(h: Any, t: int, z: Mapping[str, Tensor]) -> Tensor:
        m, s = z["m"] / (1 - h.beta1 ** (t + 1)), z["s"] / (1 - h.beta2 ** (t + 1))
        return m / (root(s) + h.eps)  # type: ignore[no-any-return]

    @staticmethod
    def _ratio(w: Tensor, direction: Tensor) -> Tensor:
        of_weight, of_step = torch.linalg.vector_norm(w), torch.linalg.vector_norm(direction)
        measured = (of_weight > 0) & (of_step > 0)
        return torch.where(measured, of_weight / torch.where(measured, of_step, 1.0), 1.0)
