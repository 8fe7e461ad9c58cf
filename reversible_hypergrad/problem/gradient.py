"""The gradient of a training loss, as the rest of the library asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Evaluation", "Gradient"]


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
