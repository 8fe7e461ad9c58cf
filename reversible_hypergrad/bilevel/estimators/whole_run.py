"""The strategies of training as estimators: one hypergradient per run, through all of it."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from reversible_hypergrad.adjoints import Adjoint
from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, direct_part, gradients_of
from reversible_hypergrad.bilevel.task import Task, detached

__all__ = ["WholeRun"]


class WholeRun(Estimator):
    """What ``backward`` through :func:`train` gives, by a strategy, exact or not. Sees everything that a run depends on.

    Args:
        adjoint: such as :class:`Reversible` or :class:`DrMAD`.

    Cost: a run and its walk back per hypergradient, as the strategy says.

    *Recommended* always, where a run is not too long to be finished before the first outer step.
    """

    def __init__(self, adjoint: Adjoint) -> None:
        self.adjoint = adjoint

    def __repr__(self) -> str:
        return repr(self.adjoint)

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        one = task()
        trained = one.train(self.adjoint)
        direct = direct_part(one, trained, leaves) if split else None
        value = one.value(trained)
        yield Estimate(float(value.detach()), gradients_of(value, leaves), direct, detached(trained), one.count)
