"""A gradient that is clipped."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.gradients.clip import Clip
from reversible_hypergrad.gradients.decorator import Decorator
from reversible_hypergrad.problem.gradient import Evaluation, Gradient, Products

__all__ = ["CLIPPED_VECTORS", "Clipped"]


CLIPPED_VECTORS = 3  # clipped gradients, the same again where they are differentiated, and the directions that come of it


class Clipped(Decorator):
    """Gradients J g: the clip of the gradients g of ``inner``. If the limits require grad, they are the last of :attr:`wanted`.

    Args:
        inner: what is clipped.
        clip: the formula.
        limits: of ``clip``, as it has resolved them: one, or one per step.
        stop: the step that the last limit is before.
    """

    def __init__(self, inner: Gradient, clip: Clip, limits: Tensor, stop: int) -> None:
        super().__init__(inner)
        self.clip, self.stop = clip, stop
        self.limits = limits.detach().requires_grad_(limits.requires_grad)
        if limits.requires_grad:
            self.wanted = [*inner.wanted, self.limits]

    def held_vectors(self) -> int:
        return self.inner.held_vectors() + CLIPPED_VECTORS

    def prepare(self, step: int, data: Any, part: int = 0) -> "_Batch":
        return _Batch(step, self.inner.prepare(step, data, part))

    def of(self, batch: "_Batch") -> "ClippedEvaluation":
        return ClippedEvaluation(self, batch.step, self.inner.of(batch.of_inner))

    def alone(self, batch: "_Batch") -> tuple[Tensor, list[Tensor]]:
        value, gradients = self.inner.alone(batch.of_inner)
        with torch.no_grad():
            return value, self.at(batch.step, gradients, self.limits)

    def values(self, batch: "_Batch") -> tuple[Tensor, list[Tensor]]:
        value, gradients = self.inner.values(batch.of_inner)
        with torch.no_grad():
            return value, self.at(batch.step, gradients, self.limits)

    def attached(self, batch: "_Batch", weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        value, gradients = self.inner.attached(batch.of_inner, weights)
        with torch.enable_grad():
            after = iter(self.at(batch.step, [g for g in gradients if g is not None], self.limits))
        return value, [None if g is None else next(after) for g in gradients]

    def at(self, step: int, gradients: Sequence[Tensor], limits: Tensor) -> list[Tensor]:
        return self.clip(gradients, limits[step - self.stop] if limits.ndim else limits)


class ClippedEvaluation(Evaluation):
    """``inner``, clipped. The clip is differentiated where products or tangents are asked for, not before."""

    def __init__(self, owner: Clipped, step: int, inner: Evaluation) -> None:
        self._owner, self._step, self._inner = owner, step, inner
        self._before: Sequence[Tensor] = inner.gradients
        self.value = inner.value
        with torch.no_grad():
            self.gradients = owner.at(step, inner.gradients, owner.limits)

    @property
    def is_attached(self) -> bool:
        return self._inner.is_attached or self._owner.limits.requires_grad

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        limits = self._owner.limits
        if keep and self._before is self._inner.gradients:  # the inner products may write over them
            self._before = [g.clone() for g in self._before]
        leaves = [g.detach().requires_grad_() for g in self._before]
        learned = [limits] if limits.requires_grad else []
        with torch.enable_grad():
            after = self._owner.at(self._step, leaves, limits)
        along = [d.to(g.dtype) for d, g in zip(directions, after, strict=True)]
        found = torch.autograd.grad(after, [*leaves, *learned], along)
        by_weights, by_hyperparameters = self._inner.products(found[: len(leaves)], keep)
        return by_weights, [*by_hyperparameters, *found[len(leaves) :]]

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        owner, limits = self._owner, self._owner.limits
        own = len(owner.inner.wanted)
        changes = self._inner.tangents(by_weights, by_hyperparameters[:own])
        count = len(by_weights[0])
        rows = [
            g.new_zeros((count, *g.shape)) if change is None else change.to(g.dtype)
            for g, change in zip(self._before, changes, strict=True)
        ]
        of_limits = by_hyperparameters[own] if limits.requires_grad else limits.new_zeros((count, *limits.shape))

        def changed(of_limits: Tensor, *rows: Tensor) -> list[Tensor]:
            primals = (limits.detach(), *(g.detach() for g in self._before))
            function = lambda limits, *gradients: owner.at(self._step, gradients, limits)  # noqa: E731
            result: list[Tensor] = torch.func.jvp(function, primals, (of_limits.to(limits.dtype), *rows))[1]
            return result

        return list(torch.func.vmap(changed)(of_limits, *rows))


class _Batch(NamedTuple):
    step: int
    of_inner: Any
