"""A gradient and its products with directions, by torch.compile."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.compile_options import compile_arguments
from reversible_hypergrad.gradients.compiled_shape import CompiledShape
from reversible_hypergrad.gradients.decorator import Decorator
from reversible_hypergrad.gradients.diagnosis import diagnose
from reversible_hypergrad.gradients.evaluation import LossEvaluation, dense
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.problem.gradient import Evaluation, Products

__all__ = ["CompiledGradient", "compiled"]

_SHAPES = 8  # each takes up to minutes to compile


def compiled(gradient: LossGradient, given: bool | Mapping[str, Any]) -> "CompiledGradient":
    """``gradient``, by torch.compile.

    Args:
        gradient: of a loss, which is compiled with its model.
        given: True, or arguments of torch.compile.

    Raises:
        ValueError: for arguments that torch.compile does not take.
    """
    return CompiledGradient(gradient, compile_arguments(given))


class CompiledGradient(Decorator):
    """The gradient of the same loss by two compiled functions per shape of the batch: alone, and with what products need.

    The first two steps of a shape are evaluated by the loss as it is, too, and compared to rounding; the two compiled functions
    are compared bit for bit, and where they differ, the one with products serves training as well, since what is undone must be
    what was done.

    Args:
        inner: what is compiled.
        arguments: of torch.compile.
    """

    inner: LossGradient

    def __init__(self, inner: LossGradient, arguments: dict[str, Any]) -> None:
        super().__init__(inner)
        self._arguments = arguments
        self._shapes: list[CompiledShape] = []
        self.seconds = 0.0  # of compiling and comparing
        self.agree = True  # whether all pairs of functions do
        self._expects_along = False
        self._present: tuple[Any, CompiledShape] | None = None  # the last batch, and what it is for

    def prepare(self, step: int, data: Any, part: int = 0) -> Any:
        batch = self.inner.prepare(step, data, part)
        shape = self._shape_of(step, batch)
        self._check(shape, step, batch)
        self._present = batch, shape
        return batch

    def of(self, batch: Any) -> "CompiledEvaluation":
        shape = self._shape_of_present(batch)
        loss, gradients = shape.evaluate(batch, with_products=True)
        return CompiledEvaluation(loss, gradients, self.names, self.weights, self.wanted)

    def expect_along(self) -> None:
        self._expects_along = True

    def along(self, batch: Any, directions: Sequence[Tensor]) -> Evaluation:
        shape = self._shape_of_present(batch)
        before = shape.seconds
        found = shape.evaluate_along(batch, directions)
        self.seconds += shape.seconds - before
        if found is None:
            return self.of(batch)
        loss, gradients, products = found
        return EvaluationAlong(
            loss, [dense(n, w, g) for n, w, g in zip(self.names, self.weights, gradients, strict=True)], products
        )

    def alone(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        shape = self._shape_of_present(batch)
        loss, gradients = shape.evaluate(batch, with_products=not shape.agree)
        return loss, [dense(n, w, g) for n, w, g in zip(self.names, self.weights, gradients, strict=True)]

    def values(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        return self.alone(batch)

    def attached(self, batch: Any, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        raise ValueError(
            "compile: expected a strategy that asks for evaluations and values alone, got one that asks for attached(). Leave "
            "compile=True out, and set graphable = False in the strategy"
        )

    def diagnose(self, step: int) -> str:
        return diagnose(self, step)

    def let_go(self) -> None:
        self._shapes, self._present = [], None
        self.inner.let_go()

    def _shape_of_present(self, batch: Any) -> CompiledShape:
        if self._present is None or self._present[0] is not batch:
            # It has been copied since, as for a graph that reads it where it is.
            shape = self._shape_of(None, batch)
            self._check(shape, None, batch)
            self._present = batch, shape
        return self._present[1]

    def _check(self, shape: CompiledShape, step: int | None, batch: Any) -> None:
        before = shape.seconds
        shape.check(step, batch, self._expects_along)
        self.seconds += shape.seconds - before
        self.agree = self.agree and shape.agree

    def _shape_of(self, step: int | None, batch: Any) -> CompiledShape:
        leaves, structure = pytree.flatten(batch)
        for shape in self._shapes:
            if shape.fits(leaves, structure):
                shape.refuse_other_constants(step, batch, leaves)
                return shape
        if len(self._shapes) == _SHAPES:
            raise ValueError(
                f"batches: {'' if step is None else f'step {step}: '}with compile=True expected at most {_SHAPES} shapes of "
                "batches (sizes, strides, dtypes, structure), each of which is compiled by itself; got one more. Pad the "
                "batches, or leave compile=True out"
            )
        shape = CompiledShape(self.inner, self._arguments, leaves, structure)
        self._shapes.append(shape)
        return shape


class EvaluationAlong(Evaluation):
    """With the products that it was made for."""

    is_attached = True

    def __init__(self, loss: Tensor, gradients: list[Tensor], products: Products) -> None:
        self.value, self.gradients, self._products = loss, gradients, products

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        return self._products

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        raise AssertionError("made for one product")


class CompiledEvaluation(LossEvaluation):
    """The graph is one node, whose backward is compiled."""

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        if not keep:
            return super().products(directions)
        import torch._functorch.config as settings  # with the rest of the compiler, it takes seconds

        # It was compiled under the same setting: a backward that may come again writes over nothing that was kept.
        with settings.patch(donated_buffer=False):
            return super().products(directions, keep=True)

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        raise ValueError(
            "compile: expected a strategy that asks for products alone, got one that asks for tangents(). Leave "
            "compile=True out, and set graphable = False in the strategy"
        )
