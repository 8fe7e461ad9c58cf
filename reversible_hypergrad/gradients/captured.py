"""A gradient and its products with directions, captured once per shape of the batch, and replayed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.captured_function import CapturedFunction
from reversible_hypergrad.gradients.decorator import Decorator
from reversible_hypergrad.gradients.graphs import CudaGraphs, Graphs
from reversible_hypergrad.gradients.static_batch import StaticBatch, write
from reversible_hypergrad.problem.gradient import Evaluation, Gradient, Products, SideEffects

__all__ = ["CapturedGradient", "captured"]

_SHAPES = 8  # each keeps the activations of a step


def captured(gradient: Gradient, hyperparameters: Any) -> "CapturedGradient":
    """``gradient``, by CUDA graphs on the weights' device.

    Args:
        gradient: what is captured.
        hyperparameters: as train() was given them.

    Raises:
        ValueError: if the weights, or a tensor among ``hyperparameters`` that wants a gradient, are not all on one CUDA device.
    """
    devices = {weight.device: name for name, weight in zip(gradient.names, gradient.weights, strict=True)}
    if len(devices) > 1:
        found = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(f"cuda_graph: expected all of the model's weights on one CUDA device, got {found}. Move it to one")
    (device,) = devices
    graphs = CudaGraphs(device)
    for path, leaf in zip(pytree.paths(hyperparameters), pytree.leaves(hyperparameters), strict=True):
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.device != device:
            raise ValueError(
                f"hyperparameters{path}: with cuda_graph=True expected what wants a gradient on {device}, "
                f"where the weights are, got it on {leaf.device}. Pass it as .to({str(device)!r}), through which gradients flow"
            )
    return CapturedGradient(gradient, graphs)


class CapturedGradient(Decorator):
    """A gradient whose results have the same bits as those of ``inner``, by fewer launches.

    For each shape of the batch, a function of it (the gradient with its graph, its products, loss and gradient alone) runs as it
    is at first; then it is captured, and replayed from there on. A replay of another step is compared with the plain result.
    The moves of a state are not captured with it: they take one launch each, whose parameters change from step to step.

    Args:
        inner: what is captured.
        graphs: what captures.
    """

    def __init__(self, inner: Gradient, graphs: Graphs) -> None:
        super().__init__(inner)
        self.graphs = graphs
        self.asked = 0  # batches, so far
        self._shapes: list[_Shape] = []
        self._places: list[int] = []

    def prepare(self, step: int, data: Any, part: int = 0) -> "_Batch":
        places = [weight.data_ptr() for weight in self.weights]
        if places != self._places:  # a strategy has moved the weights' memory, which the graphs read
            self.let_go()
            self._places = places
        self.asked += 1
        return _Batch(step, self._shape_of(step, self.inner.prepare(step, data, part)))

    def of(self, batch: "_Batch") -> "CapturedEvaluation":
        return CapturedEvaluation(self, batch)

    def values(self, batch: "_Batch") -> tuple[Tensor, list[Tensor]]:
        loss, gradients = batch.shape.values(batch.step)
        return loss.clone(), gradients

    def attached(self, batch: "_Batch", weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        raise ValueError(
            "cuda_graph: expected a strategy that asks for evaluations and values alone, got one that asks for attached(). Leave "
            "cuda_graph=True out, and set graphable = False in the strategy"
        )

    def diagnose(self, step: int) -> str:
        return self.graphs.eagerly(lambda: self.inner.diagnose(step))

    def restart(self) -> None:
        self.inner.restart()
        self.let_go()

    def let_go(self) -> None:
        self._shapes, self._places = [], []
        self.graphs.close()
        self.inner.let_go()

    def _shape_of(self, step: int, batch: Any) -> "_Shape":
        """The shape of ``batch``, which is in its tensors now."""
        leaves, structure = pytree.flatten(batch)
        for shape in self._shapes:
            if shape.batch.fits(leaves, structure):
                shape.batch.fill(step, batch, leaves)
                return shape
        if len(self._shapes) == _SHAPES:
            raise ValueError(
                f"batches: step {step}: with cuda_graph=True expected at most {_SHAPES} shapes of batches (sizes, strides, "
                "dtypes, structure), each of which keeps the activations of a step; got one more. Pad the batches, or leave "
                "cuda_graph=True out"
            )
        shape = _Shape(self.inner, self.graphs, StaticBatch(step, batch, self.weights[0].device))
        self._shapes.append(shape)
        return shape


class CapturedEvaluation(Evaluation):
    """Valid until the next batch: its tensors are those of the graphs, which write them again."""

    def __init__(self, owner: CapturedGradient, batch: "_Batch") -> None:
        self._owner, self._number = owner, owner.asked
        self._step, self._shape = batch
        evaluation = self._shape.evaluation
        before = None if evaluation.is_captured else owner.side_effects()
        (value, *self.gradients), self._plain = evaluation(self._step)
        self.value = value.clone()
        self._before: SideEffects | None = None if evaluation.is_captured else before
        self._asked = 0

    @property
    def is_attached(self) -> bool:
        return self._plain.is_attached

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        if self._owner.asked != self._number:
            raise RuntimeError(
                "cuda_graph: products were asked of an evaluation after the next one, which has written over it. Leave "
                "cuda_graph=True out, and set graphable = False in the strategy"
            )
        if not self.is_attached:
            return self._plain.products(directions)
        shape = self._shape
        shape.put_directions(directions)
        if self._before is not None:
            if not (keep and self._asked):
                self._asked += 1
                return shape.products_of(self._plain, keep)
            self._evaluate_again(self._before)
        return shape.products(self._step)

    def _evaluate_again(self, before: SideEffects) -> None:
        """Many products of one evaluation are to come, and it was not captured: now it is, with the same bits."""
        after = self._owner.side_effects()
        before.put_back()
        _, self._plain = self._shape.evaluation(self._step)
        after.put_back()
        self._before = None

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        raise ValueError(
            "cuda_graph: expected a strategy that asks for products alone, got one that asks for tangents(). Leave "
            "cuda_graph=True out, and set graphable = False in the strategy"
        )


class _Batch(NamedTuple):
    step: int
    shape: "_Shape"  # it is in its tensors


class _Shape:
    """The functions of batches of one shape."""

    def __init__(self, inner: Gradient, graphs: Graphs, batch: StaticBatch) -> None:
        self.batch, self._weights = batch, inner.weights
        self._directions: list[Tensor] = []
        directions = self._directions  # the functions must not hold the shape: a cycle would keep its memory for long

        def evaluate() -> tuple[list[Tensor], Evaluation]:
            evaluation = inner.of(batch.tree)
            return [evaluation.value, *evaluation.gradients], evaluation

        self.evaluation = evaluation = CapturedFunction(graphs, evaluate, inner.side_effects)
        self.values = CapturedFunction(graphs, lambda: inner.values(batch.tree), inner.side_effects)
        self.products = CapturedFunction(graphs, lambda: evaluation.result[1].products(directions, keep=True))

    def put_directions(self, directions: Sequence[Tensor]) -> None:
        if not self._directions:
            for d, weight in zip(directions, self._weights, strict=True):
                self._directions.append(torch.empty_strided(d.shape, d.stride(), dtype=weight.dtype, device=d.device))
        write(self._directions, directions)

    def products_of(self, evaluation: Evaluation, keep: bool) -> Products:
        """Of one that is not captured."""
        return self.products.plainly(lambda: evaluation.products(self._directions, keep))
