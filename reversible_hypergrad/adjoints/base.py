"""The interface of a memory strategy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from reversible_hypergrad.inner.problem import Cotangents, Problem

__all__ = ["Adjoint", "Run"]


class Run(ABC):
    """One training run under a strategy. Lives as long as something may still be differentiated through it."""

    @abstractmethod
    def forward(self, record: bool) -> None:
        """Trains: leaves the trained weights in the problem's weights.

        Args:
            record: False if ``pull_back`` will never be called.
        """

    @abstractmethod
    def pull_back(self, cotangents: Sequence[Tensor | None]) -> Cotangents:
        """Gradients by everything that went in, from those by the trained weights (None: zero). May be called again."""


class Adjoint(ABC):
    """A way to differentiate through a training run: what to keep, what to compute again."""

    @abstractmethod
    def start(self, problem: Problem) -> Run: ...
