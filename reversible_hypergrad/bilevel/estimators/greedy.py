"""One-step hypergradients of all steps, summed with weights that fade."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, Inner, direct_part, gradients_of, refuse
from reversible_hypergrad.bilevel.task import Task, detached

__all__ = ["GeneralizedGreedy"]


class GeneralizedGreedy(Estimator):
    """The direct part, plus the sum over steps t of gamma^(T-t) times what step t alone does to the outer loss after it.
    APPROXIMATE: later steps count as contractions by gamma in all directions, and each outer loss is that of its own step.

    Args:
        gamma: in [0, 1]. 0 is the last step alone.

    Cost: per inner step the step forth and back, and two gradients of the outer loss. One hypergradient per run.

    *Recommended* for short runs of many tasks, where it costs little more than one step. *Not recommended* beside an exact
    strategy, which costs about the same. Initial weights are refused.

    Raises:
        ValueError: for a gamma outside of [0, 1].

    >>> import reversible_hypergrad as rh
    >>> rh.GeneralizedGreedy(0.99)
    GeneralizedGreedy(gamma=0.99)

    Source: *Generalized Greedy Gradient-Based Hyperparameter Optimization*, submitted to ICLR 2025.
    """

    def __init__(self, gamma: float = 0.99) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected a number in [0, 1], got {gamma!r}")
        self.gamma = float(gamma)

    def __repr__(self) -> str:
        return f"GeneralizedGreedy(gamma={self.gamma})"

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        inner = Inner(task)
        refuse(repr(self), task(), rates=False)
        total = [torch.zeros_like(x) for x in leaves]
        while not inner.is_done:
            one, trained = inner.train(1, record=True)
            direct = direct_part(one, trained, leaves)
            value = one.value(trained)
            for sum_, g, d in zip(total, gradients_of(value, leaves), direct, strict=True):
                sum_.mul_(self.gamma).add_(g - d)
        gradients = [g + d for g, d in zip(total, direct, strict=True)]
        yield Estimate(float(value.detach()), gradients, direct if split else None, detached(trained), inner.taken)
