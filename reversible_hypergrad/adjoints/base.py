"""The interface of a memory strategy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem

__all__ = ["CAUSES", "Adjoint", "End", "Run", "states_of"]

CAUSES = (
    "Likely causes: a batch that differs on the second call, randomness that is not torch's, NumPy's or Python's global one, a "
    "loss or module that depends on how often it was called (counters, running statistics used in the loss), a hyperparameter, "
    "file or setting that changed meanwhile, or damaged memory. rh.check_replayable(model, loss, batch) looks for the first ones"
)


class End(NamedTuple):
    """Where a run ended, beside the weights."""

    states: list[dict[str, Tensor]]  # per weight, of its shape
    exact: Any = None  # integers that say it with more bits; None: there are none


class Group(Protocol):
    """Some of a run's weights, with their states."""

    members: list[int]  # of the problem's weights

    def states(self) -> list[dict[str, Tensor]]: ...


def states_of(groups: Sequence[Group]) -> list[dict[str, Tensor]]:
    """Per weight of the problem."""
    found = {m: own for group in groups for m, own in zip(group.members, group.states(), strict=True)}
    return [found[i] for i in range(len(found))]


class Run(ABC):
    """One training run under a strategy. Lives as long as something may still be differentiated through it."""

    @abstractmethod
    def forward(self, record: bool) -> None:
        """Trains: leaves the trained weights in the problem's weights.

        Args:
            record: False if ``pull_back`` will never be called.
        """

    @abstractmethod
    def end(self) -> End | None:
        """Copies of what the run ended with; None once ``pull_back`` has gone back from there."""

    @abstractmethod
    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        """Gradients by everything that went in, from those by what came out, of each of several losses. May be called again.

        The bits are those that each loss would get alone.

        Raises:
            ReversalError: if the trajectory of training was not restored.
        """


class Adjoint(ABC):
    """A way to differentiate through a training run: what to keep, what to compute again.

    Attributes:
        exact: whether its gradients are those of the training run, up to rounding.
        approximation: what an inexact one leaves out, in one sentence; empty if exact.
        graphable: whether its runs ask the problem's gradient for evaluations, their products, and values alone, which
            ``train(cuda_graph=True)`` can capture and ``train(compile=True)`` compile; not for ``attached`` or ``tangents``.
        chains: whether its runs give gradients by their first weights and states, so that one can be walked back through in
            parts.
    """

    exact: ClassVar[bool] = True
    approximation: ClassVar[str] = ""
    graphable: ClassVar[bool] = True
    chains: ClassVar[bool] = True

    @abstractmethod
    def start(self, problem: Problem) -> Run:
        """A run of ``problem``, not yet trained.

        Args:
            problem: what is trained; its weights hold the initial ones.

        Raises:
            ValueError: for a problem that the strategy cannot do.
        """

    def cost(self, size: RunSize) -> Cost | None:
        """Memory and time for a run, for the planner; None if that cannot be known.

        Args:
            size: of the run.
        """
        return None
