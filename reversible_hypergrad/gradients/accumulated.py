"""A gradient that is the mean over micro-batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.gradients.decorator import Decorator
from reversible_hypergrad.gradients.diagnosis import diagnose
from reversible_hypergrad.gradients.evaluation import dense
from reversible_hypergrad.gradients.fixed_point_mean import Exponents, FixedPointMean, fitting
from reversible_hypergrad.gradients.means import Means, mean_loss, straight_through
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.problem.gradient import Evaluation, Gradient, Products, SideEffects
from reversible_hypergrad.replay.micro_batches import micro_batches

__all__ = ["ACCUMULATED_PASSES", "ACCUMULATED_VECTORS", "Accumulated"]

ACCUMULATED_VECTORS = 2  # one micro-batch's gradients and products, beside their means
ACCUMULATED_PASSES = 1.0  # every micro-batch is evaluated again where products are asked for

Results = tuple[Tensor, Sequence[Tensor | None]]  # of one micro-batch: its loss and gradients


class Accumulated(Decorator):
    """The mean over the micro-batches of a step, evaluated one after the other. A batch in one part is as ``inner`` has it.

    The rounding of the mean counts as the identity in its derivatives.

    Args:
        inner: the gradient of a micro-batch.
        parts: in how many to cut a batch that is not :class:`MicroBatches`.
    """

    def __init__(self, inner: Gradient, parts: int = 1) -> None:
        super().__init__(inner)
        self._parts = parts
        self._exponents = Exponents(len(inner.weights))
        self._accumulates = False  # so far

    def held_vectors(self) -> int:
        return self.inner.held_vectors() + ACCUMULATED_VECTORS * self._accumulates

    def more_passes(self) -> float:
        return self.inner.more_passes() + ACCUMULATED_PASSES * self._accumulates

    def load(self, step: int) -> list[Any]:
        parts = micro_batches(step, self.inner.load(step), self._parts)
        self._accumulates |= len(parts) > 1
        return parts

    def prepare(self, step: int, data: list[Any], part: int = 0) -> "_Batch":
        return _Batch(step, part, data, self.inner.prepare(step, _own(data, 0), part))

    def of(self, batch: "_Batch") -> Evaluation:
        return self.inner.of(batch.first) if len(batch.parts) == 1 else AccumulatedEvaluation(self, batch)

    def along(self, batch: "_Batch", directions: Sequence[Tensor]) -> Evaluation:
        return self.inner.along(batch.first, directions) if len(batch.parts) == 1 else self.of(batch)

    def alone(self, batch: "_Batch") -> tuple[Tensor, list[Tensor]]:
        return self._by(batch, self.inner.alone)

    def values(self, batch: "_Batch") -> tuple[Tensor, list[Tensor]]:
        return self._by(batch, self.inner.values)

    def _by(self, batch: "_Batch", evaluate: Callable[[Any], tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
        if len(batch.parts) == 1:
            return evaluate(batch.first)
        losses, gradients = self.one_by_one(batch, self.side_effects(), evaluate)
        return mean_loss(losses), gradients

    def attached(self, batch: "_Batch", weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        if len(batch.parts) == 1:
            return self.inner.attached(batch.first, weights)
        results = [self.inner.attached(ready, weights) for ready in self.each(batch)]
        losses, means = self._mean(batch, lambda: results)
        terms = [[g for g in column if g is not None] for column in zip(*(gradients for _, gradients in results), strict=True)]
        count = len(results)
        with torch.enable_grad():
            value = straight_through(mean_loss(losses), [loss.reshape(()) for loss, _ in results], count)
            gradients = [straight_through(m, own, count) if own else None for m, own in zip(means, terms, strict=True)]
        return value, gradients

    def memory(self) -> Any:
        return [self._exponents.plain(), self.inner.memory()]

    def remember(self, memory: Any) -> None:
        own, inner = memory
        self._exponents.restore(own)
        self.inner.remember(inner)

    def diagnose(self, step: int) -> str:
        return diagnose(self, step) if self._accumulates else self.inner.diagnose(step)

    def each(self, batch: "_Batch", before: SideEffects | None = None) -> Iterator[Any]:
        """Every micro-batch in order, ready to be evaluated before the next one is asked for.

        Args:
            batch: of a step.
            before: taken when the batch was evaluated first; None: that is now.
        """
        if before is None:
            yield batch.first
        else:
            ready = self.inner.prepare(batch.step, _own(batch.parts, 0), batch.part)
            before.put_back()
            yield ready
        for i in range(1, len(batch.parts)):
            yield self.inner.prepare(batch.step, _own(batch.parts, i), batch.part + i)

    def one_by_one(
        self, batch: "_Batch", before: SideEffects, evaluate: Callable[[Any], Results]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The losses, and the mean of the gradients; results of one micro-batch are there at a time."""
        attempts = iter((None, before))
        return self._mean(batch, lambda: map(evaluate, self.each(batch, next(attempts))))

    def _mean(self, batch: "_Batch", results: Callable[[], Iterable[Results]]) -> tuple[list[Tensor], list[Tensor]]:
        """As one_by_one(). Asks for ``results`` twice where one of them does not fit in the exponents that the step has."""
        exponents = self._exponents.at(batch.step)
        losses, total = self._sum(results(), exponents, len(batch.parts))
        fit = fitting(exponents, total.largest())
        if fit != exponents:
            first = losses
            losses, total = self._sum(results(), fit, len(batch.parts))
            self.compare(batch.step, first, losses, is_same=fitting(fit, total.largest()) == fit)
        self._exponents.keep(batch.step, fit)
        return losses, total.mean()

    def _sum(self, results: Iterable[Results], exponents: list[int], parts: int) -> tuple[list[Tensor], FixedPointMean]:
        losses, total = [], FixedPointMean(self.weights, exponents, parts)
        for loss, gradients in results:
            losses.append(loss.detach())
            total.add([dense(n, w, g) for n, w, g in zip(self.names, self.weights, gradients, strict=True)])
            del gradients  # or they would still be there beside the next ones
        return losses, total

    def compare(self, step: int, first: list[Tensor], again: list[Tensor], is_same: bool = True) -> None:
        """Raises ReversalError if one evaluation gave other losses than another one, or something else was not the same."""
        if is_same and same_bits(first, again):
            return
        different = [i for i, (a, b) in enumerate(zip(first, again, strict=True)) if not same_bits(a, b)]
        where = f"micro-batch {different[0]}" if different else "a micro-batch"
        raise ReversalError(
            f"accumulate: step {step}: the loss or gradient of {where} was another one when it was evaluated again, so there is "
            "no exact hypergradient. Likely causes: the loss changes tensors of its batch in place, draws random numbers that "
            "are not torch's, NumPy's or Python's global ones, or depends on how often it was called"
        )


class AccumulatedEvaluation(Evaluation):
    """Keeps no graph: each micro-batch is evaluated again where products are asked for, with what it saw the first time."""

    def __init__(self, owner: Accumulated, batch: "_Batch") -> None:
        self._owner, self._batch, self._is_attached = owner, batch, False
        self._before = owner.side_effects()
        self._losses, self.gradients = owner.one_by_one(batch, self._before, self._evaluate)
        self.value = mean_loss(self._losses)

    def _evaluate(self, ready: Any) -> Results:
        evaluation = self._owner.inner.of(ready)
        self._is_attached |= evaluation.is_attached
        return evaluation.value, evaluation.gradients

    @property
    def is_attached(self) -> bool:
        return self._is_attached

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        weights = len(self._owner.weights)
        found = self._mean_of(weights + len(self._owner.wanted), lambda e: [p for row in e.products(directions) for p in row])
        return found[:weights], found[weights:]

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        return self._mean_of(len(self._owner.weights), lambda e: e.tangents(by_weights, by_hyperparameters))

    def _mean_of(self, count: int, ask: Callable[[Evaluation], Sequence[Tensor | None]]) -> list[Tensor | None]:
        """Of what is asked of each micro-batch's evaluation, ``count`` tensors."""
        owner, totals = self._owner, Means(count, len(self._batch.parts))
        if not self._is_attached:
            return totals.tensors()
        after, losses = owner.side_effects(), []
        for ready in owner.each(self._batch, self._before):
            evaluation = owner.inner.of(ready)
            losses.append(evaluation.value)
            totals.add(ask(evaluation))
            del evaluation  # and its graph, before the next one is made
        after.put_back()
        owner.compare(self._batch.step, self._losses, losses)
        return totals.tensors()


class _Batch(NamedTuple):
    step: int
    part: int  # the number of the first micro-batch
    parts: list[Any]
    first: Any  # micro-batch, ready to be evaluated


def _own(parts: Sequence[Any], i: int) -> Any:
    """A micro-batch in containers of its own, which the loss may change although it sees them again."""
    return parts[i] if len(parts) == 1 else pytree.map_tensors(lambda tensor: tensor, parts[i])
