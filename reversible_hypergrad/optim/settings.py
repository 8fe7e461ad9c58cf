"""A parameter group's settings: checked, and recorded as they were at a step."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from reversible_hypergrad.core.fixed_point import FixedPointFormat
from reversible_hypergrad.core.rational import approximate_momentum
from reversible_hypergrad.reversible.bucket import Coefficients

__all__ = ["Settings", "check_unsupported"]


@dataclass(frozen=True)
class Settings:
    """What one step read from a parameter group."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    maximize: bool

    @staticmethod
    def read(group: dict[str, Any]) -> "Settings":
        """The group's present settings, in torch's wording when they make no sense.

        Raises:
            ValueError: and names the setting.
        """
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError(f"Invalid learning rate: a tensor of shape {tuple(group['lr'].shape)}. Expected one element")
        settings = Settings(
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            maximize=bool(group["maximize"]),
        )
        if not (settings.lr >= 0 and math.isfinite(settings.lr)):
            raise ValueError(f"Invalid learning rate: {settings.lr}. Expected a finite number >= 0")
        if not (settings.weight_decay >= 0 and math.isfinite(settings.weight_decay)):
            raise ValueError(f"Invalid weight_decay value: {settings.weight_decay}. Expected a finite number >= 0")
        if not math.isfinite(settings.dampening):
            raise ValueError(f"Invalid dampening value: {settings.dampening}. Expected a finite number")
        if not 0 < settings.momentum <= 1:
            raise ValueError(
                f"Invalid momentum value: {settings.momentum}. Expected a number in (0, 1]: a step with momentum 0 destroys "
                "the whole velocity and cannot be undone from a few bits; use torch.optim.SGD there"
            )
        return settings

    def write(self, group: dict[str, Any]) -> None:
        """Puts the group back to these settings; a tensor lr keeps being that tensor."""
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(self.lr)
        else:
            group["lr"] = self.lr
        group["momentum"] = self.momentum
        group["dampening"] = self.dampening
        group["weight_decay"] = self.weight_decay
        group["maximize"] = self.maximize

    def fraction(self, state_bits: int) -> Fraction:
        return approximate_momentum(self.momentum, state_bits)

    def coefficients(self, layout: FixedPointFormat, first: bool) -> Coefficients:
        """As torch does, the first velocity is the gradient, undampened."""
        return Coefficients.of(
            layout,
            lr=self.lr,
            weight_decay=self.weight_decay,
            dampening=0.0 if first else self.dampening,
            maximize=self.maximize,
        )


def check_unsupported(group: dict[str, Any]) -> None:
    """Options of ``torch.optim.SGD`` that cannot be honoured are refused, never ignored."""
    if group["nesterov"]:
        raise ValueError(
            "nesterov=True cannot be undone: the step back would need the gradient before the weights that it is evaluated at "
            "are known. Use nesterov=False, or torch.optim.SGD"
        )
    if group["differentiable"]:
        raise ValueError(
            "differentiable=True is not supported: the integers of a reversible step have no autograd graph. Hypergradients come "
            "from undoing the steps, not from a graph through them; use differentiable=False"
        )
    if group["foreach"] and group["fused"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
