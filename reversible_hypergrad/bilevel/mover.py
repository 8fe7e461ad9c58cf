"""One outer step: a hypergradient is followed, or refused."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.bilevel.guard import Guard, Watch
from reversible_hypergrad.bilevel.hyperparameters import Hyperparameters
from reversible_hypergrad.bilevel.sets import Set

__all__ = ["MakeOptimizer", "MakeScheduler", "Mover", "norm_of"]

MakeOptimizer = Callable[..., torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class Mover:
    """Moves hyperparameters along hypergradients by an optimizer of torch, into their sets, and back after a refusal.

    Args:
        hyperparameters: are moved in place.
        make: makes the optimizer from groups of tensors, ``lr`` and the options.
        lr: learning rate, one for all or by name.
        options: further arguments of the optimizer.
        make_scheduler: makes a scheduler of the optimizer's learning rates, which is advanced at every outer step.
        sets: name -> where a hyperparameter has to stay.
        guard: None: what is not finite is an error, and everything else is followed.

    Raises:
        TypeError, ValueError: for what cannot be one of these.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        make: MakeOptimizer,
        lr: float | Mapping[str, float],
        options: Mapping[str, Any],
        make_scheduler: MakeScheduler | None,
        sets: Mapping[str, Set],
        guard: Guard | None,
    ) -> None:
        self.hyperparameters, self._sets = hyperparameters, sets
        rates = hyperparameters.spread("lr", lr)
        _check_rates(rates, hyperparameters)
        groups = [{"params": [x], "lr": rates[name]} for name, x in hyperparameters.learned.items()]
        self.optimizer = make(groups, lr=max(rates.values()), **options)
        _check_optimizer(self.optimizer)
        self._scheduler = None if make_scheduler is None else make_scheduler(self.optimizer)
        if make_scheduler is not None and not isinstance(self._scheduler, torch.optim.lr_scheduler.LRScheduler):
            raise TypeError(
                "scheduler: expected a function of the optimizer that returns a torch.optim.lr_scheduler.LRScheduler, got one "
                f"that returned {self._scheduler!r}"
            )
        self.watch = None if guard is None else Watch(guard)
        self._good = self._now()

    @property
    def rate(self) -> float:
        """The learning rate of the next step; of the first hyperparameter, if they have several."""
        return float(self.optimizer.param_groups[0]["lr"]) * self._scale

    def objection(self, value: float, norm: float) -> str | None:
        """Why a hypergradient is not to be followed.

        Raises:
            FloatingPointError: where nobody watches, for what is not finite.
        """
        if self.watch is not None:
            return self.watch.objection(value, norm)
        if not math.isfinite(value) or not math.isfinite(norm):
            raise FloatingPointError(
                f"expected a finite outer loss and hypergradient, got {value} and one of norm {norm}. Begin at other "
                "hyperparameters, lower lr, or give guard=rh.Guard(), which refuses such steps"
            )
        return None

    def follow(self, value: float, norm: float, gradients: Sequence[Tensor]) -> str | None:
        """Takes the step. Returns why it was taken back, if the hyperparameters were not finite after it."""
        if self.watch is not None:
            before = self._now()
        for leaf, gradient in zip(self.hyperparameters.leaves, gradients, strict=True):
            leaf.grad = gradient
        self._step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.hyperparameters.are_finite():
            return self._not_finite()
        self.hyperparameters.project(self._sets)
        if self.watch is not None:
            self.watch.accept(norm)
            self._good = before
        if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(value)
        elif self._scheduler is not None:
            self._scheduler.step()
        return None

    def go_back(self) -> None:
        """To where the last accepted hypergradient was taken."""
        assert self.watch is not None
        self.watch.refuse()
        values, states = self._good
        self.hyperparameters.move_to(values)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": _copied(states)})
        if self._scheduler is not None and not isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step()  # a plateau is one of outer losses, and here is none

    def plain(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs, in tensors and plain values."""
        return {
            "values": self.hyperparameters.values(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "watch": None if self.watch is None else self.watch.plain(),
            "good": self._good if self.watch is not None else None,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        self.hyperparameters.move_to(kept["values"])
        self.optimizer.load_state_dict(kept["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(kept["scheduler"])
        if self.watch is not None:
            self.watch.restore(kept["watch"])
            self._good = kept["good"]

    @property
    def _scale(self) -> float:
        return 1.0 if self.watch is None else self.watch.scale

    def _now(self) -> tuple[list[Tensor], dict[Any, Any]]:
        return self.hyperparameters.values(), _copied(self.optimizer.state_dict()["state"])

    def _step(self) -> None:
        """With the guard's share of the learning rates, of which schedulers do not know."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * self._scale
        try:
            self.optimizer.step()
        finally:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _not_finite(self) -> str:
        reason = "the hyperparameters were not finite after it"
        if self.watch is None:
            raise FloatingPointError(f"outer step: {reason}. Lower lr, or give guard=rh.Guard(), which takes such steps back")
        return reason


def _copied(states: dict[Any, Any]) -> dict[Any, Any]:
    """Of what optimizers hold: nests of tensors and plain values."""
    copied: dict[Any, Any] = pytree.map_tensors(torch.clone, states)
    return copied


def norm_of(gradients: Sequence[Tensor]) -> float:
    """Euclidean, of all together, in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(g.detach(), dtype=torch.float64)) for g in gradients))


def _check_rates(rates: Mapping[str, Any], hyperparameters: Hyperparameters) -> None:
    missing = [name for name in hyperparameters.learned if name not in rates]
    if missing:
        raise ValueError(f"lr: expected a learning rate for every learned hyperparameter, got none for {', '.join(missing)}")
    for rate in rates.values():
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise TypeError(f"lr: expected a number, or numbers by name, got {rate!r}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"lr: expected a finite number >= 0, got {rate!r}")


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "optimizer: expected a class of torch.optim, or a function of tensors and lr that returns such an optimizer, got one "
            f"that returned {type(optimizer).__name__}"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: expected one that takes a step from one gradient, got {type(optimizer).__name__}, which asks for losses "
            "within a step. Use torch.optim.Adam or SGD"
        )
