"""Forward-mode hypergradients at inner steps, between which the hyperparameters move."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from reversible_hypergrad.adjoints.real_time import CarriedForwardMode, Tangents
from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, Inner, direct_part, gradients_of
from reversible_hypergrad.bilevel.task import Task, detached
from reversible_hypergrad.checks import check_integer

__all__ = ["RealTime"]


class RealTime(Estimator):
    """Carries how weights and states change with every hyperparameter along with training, and gives a hypergradient at inner
    steps. Exact as long as the hyperparameters stay; APPROXIMATE where they move, as if they had always been what they are: the
    tangents of earlier steps were taken at earlier values.

    Also known as RTHO. It sees everything that a run depends on: learning rates, momenta, initial weights, first states.

    Args:
        every: after how many inner steps there is one, at least 1.
        chunk: how many tangents go through a Hessian-vector product at a time, at least 1.
        limit: refuse more hyperparameters (elements of tensors) than this; at least 1.

    Cost: a vector as large as the weights, one more per state of the rule, and a Hessian-vector product per step, for every
    element of a hyperparameter; per estimate one gradient of the outer loss, and a backward through what the task computes from
    the hyperparameters for every element. Memory does not grow with the steps.

    *Recommended* for a few hyperparameters, learning rates among them, in a long run that is to be made once. *Not recommended*
    for more than about ten: whole runs by :class:`Reversible` take the same time for any number.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for one below 1; for more hyperparameters than the limit, before training, and a task with readouts.

    >>> import torch, reversible_hypergrad as rh
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(10, 8, 3)
    >>> log_lr = torch.tensor(-3.0, requires_grad=True)
    >>> def task():
    ...     return rh.Task(
    ...         model,
    ...         lambda model, x, _: model(x).exp().mean(),
    ...         data,
    ...         outer=lambda weights: torch.func.functional_call(model, weights, data[0]).exp().mean(),
    ...         optimizer=rh.SGD(log_lr.exp(), momentum=0.9),
    ...     )
    >>> for estimate in rh.RealTime(every=2).walk(task, [log_lr]):
    ...     with torch.no_grad():
    ...         log_lr -= 0.1 * estimate.gradients[0]
    >>> estimate.step
    10

    Source: RTHO in Franceschi, Donini, Frasconi, Pontil, *Forward and Reverse Gradient-Based Hyperparameter Optimization*, ICML
    2017.
    """

    online = True

    def __init__(self, every: int = 1, chunk: int = 16, limit: int = 100) -> None:
        check_integer("every", every, least=1)
        check_integer("chunk", chunk, least=1)
        check_integer("limit", limit, least=1)
        self.every, self.chunk, self.limit = every, chunk, limit

    def __repr__(self) -> str:
        return f"RealTime(every={self.every}, chunk={self.chunk}, limit={self.limit})"

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        count = sum(x.numel() for x in leaves)
        if count > self.limit:
            raise ValueError(
                f"estimator: {self!r} got {count} hyperparameters, each of which takes vectors as large as the weights and a "
                "Hessian-vector product per step. Use rh.Reversible(), or rh.OneStep(), whose cost does not grow with their "
                "number, or a higher limit"
            )
        inner, tangents = Inner(task), None
        while not inner.is_done:
            one = inner.next(self.every)
            if one.options.get("readouts"):
                raise ValueError(f"estimator: {self!r} sees no readouts, which this task asks for in its options. Leave them out")
            strategy = CarriedForwardMode(leaves, self.chunk, tangents)
            trained = inner.take(one, record=True, adjoint=strategy)
            value = one.value(trained.standing_for(*strategy.attached(trained, trained.state.states)))
            direct = direct_part(one, trained, leaves) if split else None
            yield Estimate(float(value.detach()), gradients_of(value, leaves), direct, detached(trained), inner.taken)
            tangents = _of(strategy)


def _of(strategy: CarriedForwardMode) -> Tangents:
    assert strategy.run is not None
    return strategy.run.tangents
