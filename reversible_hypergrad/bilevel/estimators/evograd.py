"""Hypergradients from a few perturbed copies of the weights, by first derivatives alone."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator, Inner, gradients_of, pulled, refuse
from reversible_hypergrad.bilevel.estimators.step_loss import StepLoss
from reversible_hypergrad.bilevel.task import Task, detached
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.replay.environment import mix
from reversible_hypergrad.training import TrainedWeights

__all__ = ["EvoGrad"]

_NOISES: Mapping[str, Callable[[Tensor], Tensor]] = {"sign": torch.sign, "normal": lambda draws: draws}


class EvoGrad(Estimator):
    """Weighs perturbed copies of the weights by their training loss, and differentiates the outer loss of their weighted mean by
    the weights' dependence on the hyperparameters. APPROXIMATE, and random.

    Of K copies theta + sigma * noise with the losses l_k of the step's batch, the mean has the shares softmax(-l / tau). In
    expectation, and for a small sigma, the part through training is that of one plain gradient step of size (sigma^2 / tau)
    (K - 1) / K, 1e-5 at these defaults: what :class:`OneStep` gives with SGD, much shorter, which an outer optimizer such as Adam
    makes up for. A single draw sees it through K - 1 random directions: signal over noise is about the cosine between the outer
    loss's gradient and the mixed second derivative, which is small for a network. What earlier steps did is left out.

    Args:
        copies: K, at least 2.
        sigma: how far each weight is moved.
        tau: temperature of the shares.
        seed: of the noise, which is another one at every step and in every walk.
        noise: "sign": each weight is moved by sigma or -sigma, as the authors' programs do; "normal": by a Gaussian, as in their
            one-dimensional example.
        every: after how many inner steps there is one, at least 1. Copies are made before the last of them, and judged by its
            batch.

    The estimate's value is the outer loss at the mean of the copies. Clipping changes nothing in it. Buffers of the copies are
    thrown away.

    Cost: per estimate K losses and their gradients by the hyperparameters, and a gradient of the outer loss. Memory: K + 1
    vectors as large as the weights, and one graph at a time. No second derivatives are asked for.

    *Recommended* for a loss that has no second derivatives, or where memory holds no graph of them. *Not recommended*
    otherwise: :class:`OneStep` has no noise and takes about the same time. The optimizer's settings and initial weights are
    refused.

    Raises:
        TypeError: for a number of copies, a seed or an interval that is no integer.
        ValueError: for fewer than two copies, a sigma or tau that is not positive, and another noise.

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
    >>> [estimate.step for estimate in rh.EvoGrad(every=5).walk(task, [log_l2])]
    [5, 10]

    Source: Bohdal, Yang, Hospedales, *EvoGrad: Efficient Gradient-Based Meta-Learning and Hyperparameter Optimization*, NeurIPS
    2021.
    """

    online = True

    def __init__(
        self,
        copies: int = 2,
        sigma: float = 1e-3,
        tau: float = 0.05,
        seed: int = 0,
        noise: str = "sign",
        every: int = 1,
    ) -> None:
        check_integer("copies", copies, least=2)
        check_integer("seed", seed)
        check_integer("every", every, least=1)
        for name, value in (("sigma", sigma), ("tau", tau)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if noise not in _NOISES:
            raise ValueError(f"noise: expected 'sign' or 'normal', got {noise!r}")
        self.copies, self.sigma, self.tau, self.seed = copies, float(sigma), float(tau), seed
        self.noise, self.every = noise, every
        self._walks = 0

    def __repr__(self) -> str:
        return (
            f"EvoGrad(copies={self.copies}, sigma={self.sigma}, tau={self.tau}, seed={self.seed}, noise={self.noise!r}, "
            f"every={self.every})"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"walks": self._walks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._walks = state["walks"]

    def walk(self, task: Callable[[], Task], leaves: Sequence[Tensor], split: bool = False) -> Iterator[Estimate]:
        inner = Inner(task)
        refuse(repr(self), task())
        word = mix(mix(self.seed) ^ self._walks)
        self._walks += 1
        while not inner.is_done:
            steps = min(self.every, inner.count - inner.taken)
            if steps > 1:
                inner.train(steps - 1, record=False)
            one = inner.next()
            value, direct, through = self._estimate(one, leaves, mix(word ^ inner.taken))
            trained = inner.take(one, record=False)
            gradients = [d + t for d, t in zip(direct, through, strict=True)]
            yield Estimate(value, gradients, direct if split else None, detached(trained), inner.taken)

    def _estimate(self, one: Task, leaves: Sequence[Tensor], word: int) -> tuple[float, list[Tensor], list[Tensor]]:
        """The outer loss at the mean of copies of the weights where ``one`` begins; its direct part, and that by their shares."""
        before = one.untrained()
        loss = StepLoss(one, before.state)
        draws = [self._draw(before, mix(word ^ k)) for k in range(self.copies)]
        losses, by_hyperparameters = [], []
        for noise in draws:
            value, by = loss({name: w.add(noise[name], alpha=self.sigma) for name, w in before.items()})
            losses.append(value)
            by_hyperparameters.append(by)
        shares = torch.tensor(losses, dtype=torch.float64).div(-self.tau).softmax(0).tolist()
        mean = {name: sum(s * noise[name] for s, noise in zip(shares, draws, strict=True)) for name in before}
        mixed = copy.copy(before)
        mixed.update({name: w.add(mean[name], alpha=self.sigma).requires_grad_() for name, w in before.items()})
        outer = one.value(mixed)
        alphas, direct = (gradients_of(outer, by, keep=True) for by in (list(mixed.values()), leaves))
        slopes = [self._slope(share, noise, mean, alphas) for share, noise in zip(shares, draws, strict=True)]
        totals = [sum(s * g for s, g in zip(slopes, column, strict=True)) for column in zip(*by_hyperparameters, strict=True)]
        return float(outer.detach()), direct, pulled(loss.attached, totals, leaves)

    def _draw(self, weights: TrainedWeights, word: int) -> dict[str, Tensor]:
        """One number per weight."""
        generators = {w.device: torch.Generator(w.device).manual_seed(word) for w in weights.values()}
        return {
            name: _NOISES[self.noise](torch.randn(w.shape, generator=generators[w.device], dtype=w.dtype, device=w.device))
            for name, w in weights.items()
        }

    def _slope(self, share: float, noise: dict[str, Tensor], mean: Mapping[str, Any], alphas: Sequence[Tensor]) -> float:
        """The derivative of the outer loss by one copy's loss. Noise less its mean, since copies less theirs would cancel."""
        pairs = zip(alphas, noise, strict=True)
        along = sum(float((alpha.double() * (noise[name] - mean[name])).sum()) for alpha, name in pairs)
        return -share * self.sigma * along / self.tau
