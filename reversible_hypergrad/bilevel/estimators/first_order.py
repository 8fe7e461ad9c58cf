"""What an outer loss says by itself."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, Inner, direct_part, refuse
from reversible_hypergrad.bilevel.task import Task
from reversible_hypergrad.checks import check_integer

__all__ = ["FirstOrder"]


class FirstOrder(Estimator):
    """The direct part alone: the gradient of the outer loss by hyperparameters in it, at the weights of the moment. APPROXIMATE.

    It is zero for hyperparameters that the outer loss does not contain, such as penalties and example weights, and is refused
    for the optimizer's settings and initial weights.

    Args:
        every: after how many inner steps there is one, at least 1.

    Cost: one gradient of the outer loss per estimate. No second derivatives.

    *Recommended* where the hyperparameters are layers of the model that the outer loss runs through, as a cheap beginning.
    *Not recommended* for anything that acts through training.

    >>> import reversible_hypergrad as rh
    >>> rh.FirstOrder()
    FirstOrder(every=1)

    Source: FOMAML in Finn, Abbeel, Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*, ICML 2017; FO in
    Lee et al., *Online Hyperparameter Meta-Learning with Hypergradient Distillation*, ICLR 2022.
    """

    online = True

    def __init__(self, every: int = 1) -> None:
        check_integer("every", every, least=1)
        self.every = every

    def __repr__(self) -> str:
        return f"FirstOrder(every={self.every})"

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        inner = Inner(task)
        refuse(repr(self), task())
        while not inner.is_done:
            one, trained = inner.train(self.every, record=False)
            value = one.value(trained)
            direct = direct_part(one, trained, leaves)
            yield Estimate(float(value.detach()), direct, direct if split else None, trained, inner.taken)
