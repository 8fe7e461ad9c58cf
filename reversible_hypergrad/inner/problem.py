"""An inner problem as the adjoints see it: weights, settings per step, and a gradient that can be asked for twice."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Cotangents", "Evaluation", "Gradient", "Problem", "Report", "Setting", "Settings", "tree_sum"]


class Evaluation(ABC):
    """The gradient at one step's weights, and its graph until ``products`` was called or the object is dropped.

    Its tensors, and those that ``products`` returns, may be written over by the next evaluation, or the next products: use them
    before, or copy them.
    """

    loss: Tensor
    gradients: list[Tensor]  # one per weight, detached, in its weight's memory order

    @abstractmethod
    def products(self, directions: Sequence[Tensor], keep: bool = False) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """``directions`` times the second derivatives: by the weights, and by the hyperparameters. None stands for zero.

        Args:
            keep: whether to keep the graph for another call.
        """

    @abstractmethod
    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        """How the gradients change along a batch of directions: every tensor has a leading dimension of the batch's size.

        One tensor per weight, and one per hyperparameter that wants a gradient. The graph is kept.
        """


class Gradient(ABC):
    """The gradient as a function of the step, at the present weights: the same bits whenever the weights are the same."""

    @abstractmethod
    def __call__(self, step: int) -> Evaluation: ...

    @abstractmethod
    def values(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients alone. Faster; the gradients may differ from the evaluation's in the last bits, the loss not.

        They may be written over by the next call.
        """

    @abstractmethod
    def attached(self, step: int, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradients as differentiable functions of ``weights`` and of the hyperparameters in :attr:`wanted`."""

    wanted: list[Tensor]  # leaves of the graphs, one per hyperparameter that wants a gradient

    @abstractmethod
    def diagnose(self, step: int) -> str:
        """After a failed reversal: what is seen to differ when ``step`` is evaluated twice, or an empty string."""

    @abstractmethod
    def restart(self) -> None:
        """Puts whatever the evaluations change beside the weights (buffers) back to before the first step."""

    def let_go(self) -> None:  # noqa: B027
        """Frees what is kept between evaluations. There may be more of them all the same."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One of lr, momentum, dampening, weight_decay for one or several parameters. Compared by identity."""

    numbers: Sequence[float]  # one for all steps, or one per step; empty if elementwise
    elementwise: Tensor | None = None  # one per weight, flat, in the weight's memory order
    source: int | None = None  # which tensor given to the optimizer gets its gradient; None: no gradient is wanted

    def at(self, step: int) -> float:
        return self.numbers[step] if len(self.numbers) > 1 else self.numbers[0]

    def accumulate(self, gradients: Sequence[Tensor], step: int, value: Tensor) -> None:
        """Adds one step's derivative. ``gradients`` holds one tensor per source, shaped as the source."""
        assert self.source is not None
        target = gradients[self.source]
        value = value.to(target.device)
        if len(self.numbers) > 1:
            target.view(-1)[step] += value
        else:
            target += value.reshape(target.shape)

    def accumulate_steps(self, gradients: Sequence[Tensor], first: int, values: Tensor) -> None:
        """Adds the derivatives of neighbouring steps, ``values`` from step ``first`` on, in one order on every device."""
        assert self.source is not None
        target = gradients[self.source]
        values = values.to(target.device)
        if len(self.numbers) > 1:
            target.view(-1)[first : first + len(values)] += values
        else:
            target += tree_sum(values).reshape(target.shape)


def tree_sum(values: Tensor) -> Tensor:
    """The sum along the last dimension: the halves are added until one is left, so that every device gives the same bits."""
    while values.shape[-1] > 1:
        half = (values.shape[-1] + 1) // 2
        low, high = values[..., :half].clone(), values[..., half:]
        low[..., : high.shape[-1]] += high
        values = low
    return values[..., 0]


@dataclass(frozen=True)
class Settings:
    """What the optimizer does with one parameter."""

    lr: Setting
    momentum: Setting
    dampening: Setting
    weight_decay: Setting


@dataclass
class Report:
    """What a run took. Filled by the forward run, and again by each backward.

    Attributes:
        adjoint: the memory strategy, as text. exact: whether its gradients are those of the run; approximation: if not, what it
            leaves out.
        steps, weights: of the run.
        hyperparameters: elements that get a gradient, initial weights not counted.
        forward_seconds, backward_seconds: wall-clock time of the last of each; 0 before.
        state_bytes: integers of weights and velocities, held from forward to backward.
        information_bytes: accumulators and spilled planes at the end of training, or of the longest segment.
        log_bytes: hashes and the spill schedule.
        trajectory_bytes: what storing the weights of every step would have taken.
        information_bits: information_bytes in bits per weight and step. limit_bits: log2(1/momentum), averaged.
        kept_bytes: the most that snapshots, checkpoints or states between segments took at a time.
        steps_again: steps that were trained once more for a backward, over all backwards.
        checks: steps back that were compared with the hash of the step forward, over all backwards.
        restored: whether the last backward went through the trajectory of training: :class:`Reversible` ended at the initial
            weights, bit for bit; with plain floats, every step's loss was the same.
    """

    steps: int
    weights: int
    hyperparameters: int
    trajectory_bytes: int
    adjoint: str = ""
    exact: bool = True
    approximation: str = ""
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    state_bytes: int = 0
    information_bytes: int = 0
    log_bytes: int = 0
    information_bits: float = 0.0
    limit_bits: float = 0.0
    kept_bytes: int = 0
    steps_again: int = 0
    checks: int = 0
    restored: bool = False


@dataclass
class Problem:
    """A training run before it runs. ``weights`` are written in place; their first values are the initial weights."""

    names: list[str]
    weights: list[Tensor]
    settings: list[Settings]  # one per weight
    steps: int
    gradient: Gradient
    sources: list[Tensor]  # the tensors given to the optimizer, detached
    hyperparameters: list[Tensor]  # those that want gradients, detached
    report: Report
    progress: Callable[[str, int], Any]  # a bar, or something that looks like one
    nesterov: bool = False
    given: Sequence[int] = ()  # weights whose initial values were given as tensors that require grad


@dataclass
class Cotangents:
    """Gradients of something downstream, by everything that went into a run."""

    initial: list[Tensor | None]  # by the initial weights; None where a strategy does not give one
    sources: list[Tensor]
    hyperparameters: list[Tensor]

    @staticmethod
    def zeros(problem: Problem) -> "Cotangents":
        """Sums run in float64: T terms of float32 would lose digits, and the cost is small beside the products'.

        Those of the optimizer's tensors run where the weights are: a learning rate may well live on the CPU beside a model on a
        GPU, and bringing a term over would wait for every step.
        """
        places: dict[int, torch.device] = {}
        for settings, weight in zip(problem.settings, problem.weights, strict=True):
            for setting in (settings.lr, settings.momentum, settings.dampening, settings.weight_decay):
                if setting.source is not None:
                    places.setdefault(setting.source, weight.device)

        def zeros(tensor: Tensor, device: torch.device) -> Tensor:
            return torch.zeros(tensor.shape, dtype=torch.float64, device=device)

        sources = [zeros(t, places.get(i, t.device)) for i, t in enumerate(problem.sources)]
        return Cotangents([], sources, [zeros(t, t.device) for t in problem.hyperparameters])

    def add_hyperparameters(self, products: Sequence[Tensor | None]) -> None:
        for total, product in zip(self.hyperparameters, products, strict=True):
            if product is not None:
                total += product
