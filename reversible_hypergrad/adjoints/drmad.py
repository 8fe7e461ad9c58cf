"""Backwards along a straight line."""

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.float_run import FloatRun
from reversible_hypergrad.adjoints.floats import FloatState, needs_states
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.rules.sgd import SGD

__all__ = ["DrMAD"]


class DrMAD(Adjoint):
    """Walks back along the straight line from the initial to the trained weights. APPROXIMATE: training took another path.

    Momentum 0 and Nesterov are allowed. The velocity is that of moving along the line. Other rules than :class:`SGD` are allowed
    where no gradient depends on their states.

    Cost: two copies of the weights, whatever the number of steps; backward as the exact strategies.

    *Recommended* for long runs where only the direction of a hypergradient by penalties matters and :class:`Reversible` cannot
    be used. *Not recommended* where :class:`Reversible` can: it costs the same time and is exact.

    >>> import reversible_hypergrad as rh
    >>> rh.DrMAD().exact
    False

    Source: Fu, Luo, Feng, Low, Chua, *DrMAD: Distilling Reverse-Mode Automatic Differentiation for Optimizing Hyperparameters of
    Deep Neural Networks*, IJCAI 2016.
    """

    exact = False
    approximation = "the way back is the straight line from the initial to the trained weights"

    def __repr__(self) -> str:
        return "DrMAD()"

    def start(self, problem: Problem) -> Run:
        if not isinstance(problem.rule, SGD) and needs_states(problem):
            raise ValueError(
                "adjoint: DrMAD knows the states on its line for rh.SGD alone, and these gradients depend on those of "
                f"{problem.rule!r}. Use rh.Checkpoint(), or settings that want no gradient"
            )
        return DrMADRun(problem)


class DrMADRun(FloatRun):
    replays = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._end: list[FloatState] = []

    def keep(self, step: int) -> None:
        pass

    def restore(self, step: int) -> None:
        steps = self.problem.steps
        if step == steps[-1]:
            self._end = [group.state(False) for group in self.groups]
        for group, start, end in zip(self.groups, self.begin, self._end, strict=True):
            group.w.copy_(start.w).lerp_(end.w, (step - steps.start) / len(steps))
            if self.with_states:
                # w - lr*v is the next point of the line. Of the step before: there v was made.
                group.z["v"].copy_(start.w - end.w).div_(len(steps))
                for span in group.spans:
                    span.of(group.z["v"]).div_(span.h(max(step - 1, steps.start)).lr).nan_to_num_(0.0, 0.0, 0.0)
                if step == steps.start:
                    group.z["v"].zero_()

    def let_go(self) -> None:
        self._end = []
