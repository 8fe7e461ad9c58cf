"""Hypergradients through the last steps alone, while training goes on."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, Inner, direct_part, gradients_of, refuse
from reversible_hypergrad.bilevel.task import Task, detached
from reversible_hypergrad.checks import check_integer

__all__ = ["OneStep", "Windowed"]


class Windowed(Estimator):
    """Trains window by window, and differentiates through each, as if the weights before it were given. APPROXIMATE.

    With one step it is T1-T2, or one-step lookahead. The effect of a hyperparameter on earlier steps is left out, which a
    truncated gradient of a whole run, ``rh.Truncated``, leaves out as well.

    Args:
        steps: of a window, at least 1.

    Cost: per window its steps forward, and about three times that back, and one gradient of the outer loss. Memory: snapshots of
    one window.

    *Recommended* for penalties and example weights that may change while training goes on, and where whole runs are too long.
    *Not recommended* for learning rates: each window alone asks for larger ones than the run does (Wu et al., *Understanding
    Short-Horizon Bias in Stochastic Meta-Optimization*, ICLR 2018). Initial weights are refused.

    >>> import reversible_hypergrad as rh
    >>> rh.Windowed(5)
    Windowed(steps=5)

    Source: Luketina, Berglund, Greff, Raiko, *Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters*, ICML
    2016 (T1-T2).
    """

    online = True

    def __init__(self, steps: int = 1) -> None:
        check_integer("steps", steps, least=1)
        self.steps = steps

    def __repr__(self) -> str:
        return f"Windowed(steps={self.steps})"

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        inner = Inner(task)
        refuse(repr(self), task(), rates=False)
        while not inner.is_done:
            one, trained = inner.train(self.steps, record=True)
            direct = direct_part(one, trained, leaves) if split else None
            value = one.value(trained)
            yield Estimate(float(value.detach()), gradients_of(value, leaves), direct, detached(trained), inner.taken)


class OneStep(Windowed):
    """T1-T2: :class:`Windowed` with one step.

    >>> import reversible_hypergrad as rh
    >>> rh.OneStep()
    OneStep()
    """

    def __init__(self) -> None:
        super().__init__(1)

    def __repr__(self) -> str:
        return "OneStep()"
