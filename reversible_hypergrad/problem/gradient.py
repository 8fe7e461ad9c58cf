"""The gradient of a training loss, as the rest of the library asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["Evaluation", "Gradient", "Products", "SideEffects"]

Products = tuple[list[Tensor | None], list[Tensor | None]]  # by the weights, and by the hyperparameters; None stands for zero


class Evaluation(ABC):
    """The gradient at one step's weights, and its graph until ``products`` was called or the object is dropped.

    Its tensors, and those that ``products`` returns, may be written over by the next evaluation, or the next products: use them
    before, or copy them.
    """

    value: Tensor  # of the loss, detached
    gradients: list[Tensor]  # one per weight, detached, in its weight's memory order

    @property
    @abstractmethod
    def is_attached(self) -> bool:
        """Whether there is a graph. If not, the second derivatives are zero, and so are all products."""

    @abstractmethod
    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        """``directions`` times the second derivatives: by the weights, and by the hyperparameters. None stands for zero.

        Args:
            directions: one tensor per weight, of its shape.
            keep: whether to keep the graph for another call.
        """

    @abstractmethod
    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        """How the gradients change along a stack of directions: every tensor has a leading dimension of the stack's size.

        The graph is kept.

        Args:
            by_weights: one tensor per weight.
            by_hyperparameters: one tensor per hyperparameter that wants a gradient.
        """


class SideEffects(ABC):
    """What evaluations change beside their results: random numbers and the model's buffers, as they are when this is made."""

    buffers: list[Tensor]  # copies

    @abstractmethod
    def put_back(self) -> None:
        """Makes random numbers and buffers what they were."""


class Gradient(ABC):
    """The gradient as a function of the step, at the present weights: the same bits whenever the weights are the same.

    In two halves: what a step brings, ``batch(step)``, and what the loss makes of it, ``of(batch)``. Between the two nothing may
    draw random numbers, and a batch is valid until the next one. The first half has two halves itself, ``load`` and ``prepare``,
    since what is loaded once may be prepared and evaluated part by part. A gradient made of another one, such as a clipped or a
    captured one, uses this interface of it and nothing else, see :class:`Decorator`.
    """

    names: list[str]  # of the weights
    weights: list[Tensor]  # what it is the gradient by; written in place by the run
    wanted: list[Tensor]  # leaves of the graphs, one per hyperparameter that wants a gradient

    def held_vectors(self) -> int:
        """What evaluations with products hold beside gradients, products and graph, in tensors for all weights."""
        return 0

    def more_passes(self) -> float:
        """How many more gradients it takes to evaluate one with products than that of a loss does."""
        return 0.0

    def __call__(self, step: int) -> Evaluation:
        return self.of(self.batch(step))

    def batch(self, step: int) -> Any:
        """The batch of ``step``; the random numbers that follow are those of its loss."""
        return self.prepare(step, self.load(step))

    @abstractmethod
    def load(self, step: int) -> Any:
        """What the run was given for ``step``. Random numbers begin anew."""

    @abstractmethod
    def prepare(self, step: int, data: Any, part: int = 0) -> Any:
        """A batch that :meth:`of`, :meth:`values` and :meth:`attached` take.

        Args:
            step: that ``data`` is of.
            data: what was loaded, or a part of it that is like it.
            part: its number. Random numbers go on from ``load`` for part 0, and begin anew for every other one.
        """

    @abstractmethod
    def of(self, batch: Any) -> Evaluation:
        """The gradient of the loss of ``batch``, with a graph."""

    def along(self, batch: Any, directions: Sequence[Tensor]) -> Evaluation:
        """As :meth:`of`, where it is known before what its products will be asked for: once, of ``directions``."""
        return self.of(batch)

    def expect_along(self) -> None:  # noqa: B027
        """The way back will ask :meth:`along`: what that takes to prepare is better done in the first step."""

    def expect_no_replay(self) -> None:  # noqa: B027
        """No step will be evaluated again: what its loss would tell then, a loss that reads what it moves, is to be looked for at
        once."""

    def alone(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients with the very bits of the evaluation, for training that is to be undone by evaluations.

        They may be written over by the next call.
        """
        evaluation = self.of(batch)
        return evaluation.value, evaluation.gradients

    @abstractmethod
    def values(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients alone. Faster; the gradients may differ from the evaluation's in the last bits, the loss not.

        They may be written over by the next call.
        """

    @abstractmethod
    def attached(self, batch: Any, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradients as differentiable functions of ``weights`` and of the hyperparameters in :attr:`wanted`."""

    @abstractmethod
    def diagnose(self, step: int) -> str:
        """After a failed reversal: what is seen to differ when ``step`` is evaluated twice, or an empty string."""

    @abstractmethod
    def restart(self) -> None:
        """Puts whatever the evaluations change beside the weights (buffers) back to before the first step."""

    @abstractmethod
    def side_effects(self) -> SideEffects:
        """To evaluate more often than the run does, and leave no trace."""

    def memory(self) -> Any:
        """What it knows of the steps so far that later ones depend on, in plain values; None: nothing."""
        return None

    def remember(self, memory: Any) -> None:  # noqa: B027
        """Goes on where another one was that gave its ``memory``."""

    def let_go(self) -> None:  # noqa: B027
        """Frees what is kept between evaluations. There may be more of them all the same."""
