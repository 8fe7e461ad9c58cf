"""How large a training run is, and what a strategy takes for it: what the planner asks and is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reversible_hypergrad.adjoints.floats import needs_states
from reversible_hypergrad.adjoints.per_step import PerStep
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.problem.setting import Setting

__all__ = ["Cost", "RunSize"]

# In units of a training step: one step's gradient with Hessian-vector product, and its share of the adjoint's arithmetic.
_STEP_BACK = 2.8


@dataclass(frozen=True)
class Cost:
    """What a strategy takes.

    Attributes:
        bytes: the most memory at a time, all that :func:`train` allocates, without the activations of a single step.
        time: forward and backward together, in units of the same training without a hypergradient.
        obstacle: why the strategy cannot do the run at all; empty if it can.
    """

    bytes: float
    time: float
    obstacle: str = ""


@dataclass(frozen=True)
class RunSize:
    """How large a training run is.

    Attributes:
        weights: how many.
        steps: how many.
        factors: a pair for each factor that a state or the weight decays by: how many weights share it, and its numbers, one for
            all steps or one per step.
        weight_bytes: bytes of one weight.
        adjoint_bytes: bytes of an element of the adjoint's vectors.
        states: of the rule, per weight; a mean, where there are several rules.
        squares: how many of them are means of squares, which have 64 bits in every layout.
        with_states: whether the adjoint looks at states: with SGD, where learning rates or momenta get gradients.
        irreversible: why the steps cannot be undone; empty if they can.
        hyperparameters: how many elements get a gradient, initial weights not counted; None: not known.
        gradient_vectors: what clipping and micro-batches hold beside a loss's gradients, in tensors for all weights.
        gradient_passes: how many more gradients a step back takes with them.
    """

    weights: int
    steps: int
    factors: Sequence[tuple[int, Sequence[float] | NDArray[np.float64]]]
    weight_bytes: int = 4
    adjoint_bytes: int = 4
    states: float = 1
    squares: float = 0
    with_states: bool = False
    irreversible: str = ""
    hyperparameters: int | None = None
    gradient_vectors: int = 0
    gradient_passes: float = 0.0

    @staticmethod
    def of(problem: Problem) -> "RunSize":
        shared: dict[tuple[Setting, ...], int] = {}
        firsts: dict[tuple[Setting, ...], int] = {}
        for i, (weight, settings) in enumerate(zip(problem.weights, problem.settings, strict=True)):
            key = tuple(settings.values())
            shared[key] = shared.get(key, 0) + weight.numel()
            firsts.setdefault(key, i)
        factors: list[tuple[int, Sequence[float] | NDArray[np.float64]]] = []
        for key, count in shared.items():
            rule = problem.rule_of(firsts[key])
            factors += [(count, own) for own in rule.factors(problem.settings[firsts[key]], problem.steps).values()]
            if rule.keeps_signs:
                factors.append((count, [0.5]))  # a bit of each weight, as much as halving loses
        weight_bytes = max(weight.element_size() for weight in problem.weights)
        return RunSize(
            weights=sum(weight.numel() for weight in problem.weights),
            steps=len(problem.steps),
            factors=factors,
            weight_bytes=weight_bytes,
            adjoint_bytes=max(4, weight_bytes),
            states=problem.per_weight(lambda rule: len(rule.states)),
            squares=problem.per_weight(lambda rule: sum(power == 2 for power in rule.states.values())),
            with_states=needs_states(problem),
            irreversible=problem.irreversible() or "",
            hyperparameters=problem.report.hyperparameters,
            gradient_vectors=problem.gradient.held_vectors(),
            gradient_passes=problem.gradient.more_passes(),
        )

    @property
    def common_bytes(self) -> float:
        """What every strategy holds at the end of a step back, per run: the copy of the weights, the result and its cotangent,
        gradients and products, the adjoint's vectors; per hyperparameter a float64 sum, a product and the result."""
        per_weight = (5 + self.gradient_vectors) * self.weight_bytes + (1 + self.states) * self.adjoint_bytes
        return per_weight * self.weights + 16.0 * (self.hyperparameters or 0)

    @property
    def float_bytes(self) -> float:
        """Beside them, with plain floats: states, the gradient as one vector, the initial weights; the losses."""
        return self.common_bytes + (2.0 + self.states) * self.weight_bytes * self.weights + 16.0 * self.steps

    @property
    def vector_bytes(self) -> float:
        """Of the weights of one step."""
        return float(self.weight_bytes * self.weights)

    @cached_property
    def information_bits(self) -> PerStep:
        """What each step's decays destroy, in all weights together."""
        total: NDArray[np.float64] = np.zeros(1)
        for weights, numbers in self.factors:
            total = total + np.log2(np.asarray(numbers, np.float64)) * -weights
        return PerStep(total, self.steps)

    def time(self, trained_again: float, more: float = 0.0) -> float:
        """Once forward and back, in units of the same training without a hypergradient.

        Args:
            trained_again: how many steps are trained once more.
            more: whatever else, in the same units.
        """
        return 1.0 + _STEP_BACK + self.gradient_passes + trained_again / max(self.steps, 1) + more
