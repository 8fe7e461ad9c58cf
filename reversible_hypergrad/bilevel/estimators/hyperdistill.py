"""Hypergradients from one step at a distilled point, scaled to stand for all steps."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from torch import Tensor

from reversible_hypergrad.adjoints import Snapshots
from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, Inner, gradients_of, pulled, refuse
from reversible_hypergrad.bilevel.estimators.distilled import Distilled
from reversible_hypergrad.bilevel.estimators.horizons import FITS, Horizons
from reversible_hypergrad.bilevel.estimators.step_loss import StepLoss
from reversible_hypergrad.bilevel.task import Task, detached
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.replay.environment import mix

__all__ = ["HyperDistill"]

_REMEMBERED = 5  # estimates of theta, of which the median counts


class HyperDistill(Estimator):
    """The direct part, plus one step's effect on the outer loss, taken at a distilled point and scaled to that of all steps so
    far. APPROXIMATE: steps count as contractions by gamma in all directions.

    With S(t) = (1 - gamma^t) / (1 - gamma), the part through training after t steps is theta * S(t) * v_t, where v_t is the
    gradient of the outer loss after the step, times the derivative by the hyperparameters of a step of the task's own rule from
    the point w*_t with the batch D*_t. Both are means over the steps so far, with weights that fade by gamma: w*_t = p w*_{t-1} +
    (1 - p) w_{t-1} with p = 1 - 1 / S(t), and as many examples of D*_{t-1}, drawn at random, the rest of the step's own batch.
    The step from w* has the optimizer's states of the moment, with which it gives what a step of SGD from states of zero would.

    theta is fitted once in every ``refit`` walks, on a run of its own at the hyperparameters of the moment: it is the median,
    over horizons s, of what the scaled v_s must be multiplied by so that its length fits the projection of the part that comes
    through the last s steps. That of the last 5 fits counts. The authors fit by least squares, in which a single horizon where
    the backward pass explodes decides. A fit that is not positive and finite is a RuntimeWarning, and is not used; theta is 1
    as long as there is none.

    Args:
        gamma: how fast the weights of earlier steps fade, in [0, 1]. With 0 it is a scaled :class:`OneStep`.
        refit: in every how many walks to fit theta, at least 1.
        theta: a positive number in place of a fit.
        fit: by what backward pass: "drmad", along the straight line, as the authors do; "exact", along the path of training.
        seed: of the draws of examples.

    A batch must hold everything that belongs to its examples, such as the indices of their weights, since D* has them in
    another order. Where all batches are one and the same tensors, D* is that batch.

    Cost: per inner step the step, another one at w* with its products, and a gradient of the outer loss; per fit a run and its
    walk back, and up to 100 steps with products, and for "exact" the weights of every step. Memory: two vectors as large as the
    weights, and a batch.

    *Recommended* for hyperparameters of the loss in many short runs that begin alike, where they must move at every inner step.
    *Not recommended* where a whole run can be afforded: then exact hypergradients are closer and no dearer per step. Learning
    rates, other settings and initial weights are refused.

    Raises:
        TypeError: for an interval or a seed that is no integer.
        ValueError: for a gamma outside of [0, 1], a theta that is not positive, and another fit.

    >>> import torch, reversible_hypergrad as rh
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(10, 8, 3)
    >>> log_l2 = torch.tensor(-3.0, requires_grad=True)
    >>> def task():
    ...     return rh.Task(
    ...         model,
    ...         lambda model, x, log_l2: model(x).exp().mean() + log_l2.exp() * model.weight.square().sum(),
    ...         data,
    ...         outer=lambda weights: torch.func.functional_call(model, weights, data[0]).exp().mean(),
    ...         optimizer=rh.SGD(0.02),
    ...         hyperparameters=log_l2,
    ...     )
    >>> estimator = rh.HyperDistill(gamma=0.9)
    >>> [estimate.step for estimate in estimator.walk(task, [log_l2])][-1], estimator.theta > 0
    (10, True)

    Source: Lee, Lee, Shin, Yang, Hospedales, Hwang, *Online Hyperparameter Meta-Learning with Hypergradient Distillation*, ICLR
    2022.
    """

    online = True

    def __init__(
        self, gamma: float = 0.99, refit: int = 50, theta: float | None = None, fit: str = "drmad", seed: int = 0
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected a number in [0, 1], got {gamma!r}")
        if theta is not None and not 0 < theta < math.inf:
            raise ValueError(f"theta: expected a positive number or None, got {theta!r}")
        if fit not in FITS:
            raise ValueError(f"fit: expected 'drmad' or 'exact', got {fit!r}")
        check_integer("refit", refit, least=1)
        check_integer("seed", seed)
        self.gamma, self.refit, self.fit, self.seed = float(gamma), refit, fit, seed
        self._given = None if theta is None else float(theta)
        self._fits: list[float] = []
        self._walks = 0

    def __repr__(self) -> str:
        return f"HyperDistill(gamma={self.gamma}, refit={self.refit}, theta={self._given}, fit={self.fit!r}, seed={self.seed})"

    @property
    def theta(self) -> float:
        """The factor of the moment."""
        return self._given or (median(self._fits[-_REMEMBERED:]) if self._fits else 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"walks": self._walks, "fits": list(self._fits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._walks, self._fits = state["walks"], list(state["fits"])

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        inner = Inner(task)
        refuse(repr(self), task())
        word = mix(mix(self.seed) ^ self._walks)
        if self._given is None and (self._walks % self.refit == 0 or not self._fits):
            self._fit(task(), leaves, mix(word))
        self._walks += 1
        distilled = Distilled(word)
        while not inner.is_done:
            one, t = inner.next(), inner.taken + 1
            before = inner.state or one.untrained().state
            distilled.add(before.weights, StepLoss(one, before).data, 1 - 1 / _sum(self.gamma, t))
            trained = inner.take(one, record=False)
            at = detached(trained, requires_grad=True)
            value = one.value(at)
            alphas, direct = (gradients_of(value, by, keep=True) for by in (list(at.values()), leaves))
            scale = self.theta * _sum(self.gamma, t)
            v = _one_step(one, before, distilled, alphas, leaves)
            gradients = [d + scale * by for d, by in zip(direct, v, strict=True)]
            yield Estimate(float(value.detach()), gradients, direct if split else None, detached(trained), inner.taken)

    def _fit(self, one: Task, leaves: Sequence[Tensor], word: int) -> None:
        """Theta, at the present hyperparameters, on a run of its own."""
        horizons = Horizons(one, leaves, FITS[self.fit])
        if not horizons.attached:
            return
        distilled, ratios = Distilled(word), []
        last = one.window(horizons.before_last, 1)
        for s, weights, data, through in horizons:
            distilled.add(weights, data, _sum(self.gamma, s - 1) / _sum(self.gamma, s))
            if through is None:
                continue
            v = _one_step(last, horizons.before_last, distilled, horizons.alphas, leaves)
            square = _dot(v, v)
            if square > 0:
                ratios.append(_dot(v, through) / (square * _sum(self.gamma, s)))
        finite = [ratio for ratio in ratios if math.isfinite(ratio)]
        found = median(finite) if finite else math.nan
        if found > 0:
            self._fits.append(found)
        else:
            warnings.warn(
                f"HyperDistill: theta was fitted as {found:.3g}, expected a positive number, so this fit is not used and theta "
                f"is {self.theta:.3g}. Fit by fit='exact', or give theta=",
                RuntimeWarning,
                stacklevel=3,
            )


def _sum(gamma: float, t: int) -> float:
    """1 + gamma + ... + gamma^(t - 1)."""
    return float(t) if gamma == 1 else (1 - gamma**t) / (1 - gamma)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _one_step(one: Task, state: Start, distilled: Distilled, alphas: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """v: ``alphas`` times the derivative of the step by the hyperparameters at the distilled point with the distilled batch."""
    start = replace(state, weights=distilled.weights)
    trained = replace(one, start=start, initial=None, batches=lambda _: distilled.data).train(Snapshots())
    return pulled(list(trained.values()), alphas, leaves)
