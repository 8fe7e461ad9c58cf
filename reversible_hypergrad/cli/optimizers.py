"""The optimizers that can be tuned: each one's settings, how finely and in which coordinate they are learned, and where from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

import reversible_hypergrad as rh

__all__ = ["OPTIMIZERS", "Optimizer", "Setting"]


@dataclass(frozen=True)
class Setting:
    """One setting, learned in a coordinate in which any real number is allowed: its logarithm, or the logit of a fraction.

    Attributes:
        name: in the results. label, labels: in words, one and many.
        per: what has a value of its own: each "layer" at each step, each "step", or each "weight" at all steps.
        tried: constants to begin with; the grid chooses.
        most: larger ones are not used, whatever the coordinate.
        fraction: whether it lies between 0 and 1.
    """

    name: str
    label: str
    labels: str
    per: Literal["layer", "step", "weight"]
    tried: tuple[float, ...]
    most: float = math.inf
    fraction: bool = False

    def coordinate(self, value: float) -> float:
        return math.log(value / (1 - value)) if self.fraction else math.log(value)

    def value(self, coordinate: Tensor) -> Tensor:
        """Differentiable. Of a fraction in float64, which resolves what lies near 1."""
        if self.fraction:
            return torch.sigmoid(coordinate.double()).clamp(0.001, self.most)
        return coordinate.exp().clamp(max=self.most)


@dataclass(frozen=True)
class Optimizer:
    """What is known of one optimizer.

    Attributes:
        rule, plain: ours and torch's.
        settings: "lr" and "l2" are among them.
        arguments: from the settings' values by name to keyword arguments, for ``rule``, and for a group of ``plain``.
        penalty_in_loss: whether the L2 penalty is added to the loss, as ``arguments`` have no place for one per weight.
        first_lr: learning begins at this multiple of the best constant learning rate.
    """

    rule: type[rh.Rule]
    plain: Callable[..., torch.optim.Optimizer]
    settings: tuple[Setting, ...]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    penalty_in_loss: bool = False
    first_lr: float = 1.0

    @property
    def name(self) -> str:
        """In words."""
        return self.rule.__name__


def _sgd(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr": values["lr"], "momentum": values["momentum"], "weight_decay": values["l2"]}


def _adamw(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr": values["lr"], "betas": (values["beta1"], values["beta2"]), "weight_decay": values["weight_decay"]}


_L2 = Setting("l2", "L2 penalty", "penalties", "weight", (1e-4, 3e-4, 1e-3, 3e-3))

OPTIMIZERS = {
    "sgd": Optimizer(
        rh.SGD,
        torch.optim.SGD,
        (
            Setting("lr", "learning rate", "learning rates", "layer", (0.1, 0.2, 0.4, 0.8, 1.6)),
            Setting("momentum", "momentum", "momenta", "step", (0.9,), most=0.999, fraction=True),
            _L2,
        ),
        _sgd,
    ),
    "adamw": Optimizer(
        rh.AdamW,
        torch.optim.AdamW,
        (
            # The largest learning rate times the largest decay must stay below 1: what is left of a weight.
            Setting("lr", "learning rate", "learning rates", "layer", (0.003, 0.01, 0.03), most=0.3),
            Setting("beta1", "beta1", "beta1 values", "step", (0.9,), most=0.999, fraction=True),
            Setting("beta2", "beta2", "beta2 values", "step", (0.99, 0.999), most=0.9999, fraction=True),
            # Decoupled: it shrinks whole tensors, since a decay per weight cannot be undone. So penalties go to the loss.
            Setting("weight_decay", "weight decay", "weight decays", "layer", (0.01, 0.1), most=3.0),
            replace(_L2, tried=(1e-4, 3e-4)),
        ),
        _adamw,
        penalty_in_loss=True,
        # At the best constant, 0.03 on digits, hypergradients of different orders of minibatches hardly agree (their mean cosine
        # for learning rates is 0.01, at 0.01 it is 0.3), and less is learned.
        first_lr=1 / 3,
    ),
}
