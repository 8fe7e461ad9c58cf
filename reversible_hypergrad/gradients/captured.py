"""The training loss's gradient and its products with directions, captured once per shape of the batch, and replayed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.graphs import CudaGraphs, Graphs
from reversible_hypergrad.gradients.loss import LossEvaluation, LossGradient, same_bits
from reversible_hypergrad.gradients.static_batch import StaticBatch, write
from reversible_hypergrad.problem.gradient import Evaluation, Gradient
from reversible_hypergrad.replay.environment import RandomStates

__all__ = ["CapturedGradient", "captured"]

T = TypeVar("T")
Products = tuple[list[Tensor | None], list[Tensor | None]]

_SHAPES = 8  # each keeps the activations of a step


def captured(gradient: LossGradient, hyperparameters: Any) -> "CapturedGradient":
    """``gradient``, by CUDA graphs on the weights' device.

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


class CapturedGradient(Gradient):
    """A :class:`LossGradient` whose results have the same bits, by fewer launches.

    For each shape of the batch, a function of it (the gradient with its graph, its products, loss and gradient alone) runs as it
    is at first; then it is captured, and replayed from there on. A replay of another step is compared with the plain result.
    The moves of a state are not captured with it: they take one launch each, whose parameters change from step to step.

    Args:
        inner: what is captured.
        graphs: what captures.
    """

    def __init__(self, inner: LossGradient, graphs: Graphs) -> None:
        self.inner, self.graphs = inner, graphs
        self.wanted = inner.wanted
        self.evaluations = 0
        self._shapes: list[_Shape] = []
        self._places: list[int] = []

    def __call__(self, step: int) -> "CapturedEvaluation":
        return CapturedEvaluation(self, self._shape(step), step)

    def values(self, step: int) -> tuple[Tensor, list[Tensor]]:
        shape = self._shape(step)
        if not self.inner.checked:  # see LossGradient.values
            before = Moment(self.inner)
            self.graphs.eagerly(lambda: self.inner.evaluation_of(shape.batch.tree))
            before.put_back()
        loss, gradients = shape.values(step)
        return loss.clone(), gradients

    def attached(self, step: int, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
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

    def _shape(self, step: int) -> "_Shape":
        """For the batch of ``step``, which is in its tensors now, and with the random numbers of the step's loss to come."""
        places = [weight.data_ptr() for weight in self.inner.weights]
        if places != self._places:  # a strategy has moved the weights' memory, which the graphs read
            self.let_go()
            self._places = places
        self.evaluations += 1
        batch = self.inner.batch_of(step)
        leaves, spec = pytree.flatten(batch)
        for shape in self._shapes:
            if shape.batch.fits(leaves, spec):
                shape.batch.fill(step, batch, leaves)
                return shape
        if len(self._shapes) == _SHAPES:
            raise ValueError(
                f"batches: step {step}: with cuda_graph=True expected at most {_SHAPES} shapes of batches (sizes, strides, "
                "dtypes, structure), each of which keeps the activations of a step; got one more. Pad the batches, or leave "
                "cuda_graph=True out"
            )
        shape = _Shape(self.inner, self.graphs, StaticBatch(step, batch, self.inner.weights[0].device))
        self._shapes.append(shape)
        return shape


class CapturedEvaluation(Evaluation):
    """Valid until the next evaluation: its tensors are those of the graphs, which write them again."""

    def __init__(self, owner: CapturedGradient, shape: "_Shape", step: int) -> None:
        self._owner, self._shape, self._step = owner, shape, step
        self._number = owner.evaluations
        before = None if shape.evaluation.is_captured else Moment(owner.inner)
        (loss, *self.gradients), self._plain = shape.evaluation(step)
        self.loss = loss.clone()
        self._before = None if shape.evaluation.is_captured else before
        self._asked = 0

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        if self._owner.evaluations != self._number:
            raise RuntimeError(
                "cuda_graph: products were asked of an evaluation after the next one, which has written over it. Leave "
                "cuda_graph=True out, and set graphable = False in the strategy"
            )
        if not self._plain.is_attached:
            return self._plain.products(directions)
        shape = self._shape
        shape.put_directions(directions)
        if self._before is not None:
            if not (keep and self._asked):
                self._asked += 1
                return shape.products_of(self._plain, keep)
            self._evaluate_again(self._before)
        return shape.products(self._step)

    def _evaluate_again(self, before: "Moment") -> None:
        """Many products of one evaluation are to come, and it was not captured: now it is, with the same bits."""
        after = Moment(self._owner.inner)
        before.put_back()
        _, self._plain = self._shape.evaluation(self._step)
        after.put_back()
        self._before = None

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        raise ValueError(
            "cuda_graph: expected a strategy that asks for products alone, got one that asks for tangents(). Leave "
            "cuda_graph=True out, and set graphable = False in the strategy"
        )


class _Shape:
    """The functions of batches of one shape."""

    def __init__(self, inner: LossGradient, graphs: Graphs, batch: StaticBatch) -> None:
        self.batch, self._weights = batch, inner.weights
        self._directions: list[Tensor] = []
        directions = self._directions  # the functions must not hold the shape: a cycle would keep its memory for long

        def evaluate() -> tuple[list[Tensor], LossEvaluation]:
            evaluation = inner.evaluation_of(batch.tree)
            return [evaluation.loss, *evaluation.gradients], evaluation

        self.evaluation = evaluation = _Captured(inner, graphs, evaluate, compare=True)
        self.values = _Captured(inner, graphs, lambda: inner.values_of(batch.tree), compare=True)
        self.products = _Captured(inner, graphs, lambda: evaluation.result[1].products(directions, keep=True))

    def put_directions(self, directions: Sequence[Tensor]) -> None:
        if not self._directions:
            for d, weight in zip(directions, self._weights, strict=True):
                self._directions.append(torch.empty_strided(d.shape, d.stride(), dtype=weight.dtype, device=d.device))
        write(self._directions, directions)

    def products_of(self, evaluation: LossEvaluation, keep: bool) -> Products:
        """Of one that is not captured."""
        return self.products.plainly(lambda: evaluation.products(self._directions, keep))


class _Captured(Generic[T]):
    """A function of tensors that stay where they are. The first call in a thread runs it as it is; the next one captures it.

    A thread of its own, because libraries keep handles per thread, which cannot be made inside a capture; and train()'s backward
    is not in the thread of its forward.
    """

    result: T  # of the capture

    def __init__(self, inner: LossGradient, graphs: Graphs, function: Callable[[], T], compare: bool = False) -> None:
        self._inner, self._graphs, self._function, self._compare = inner, graphs, function, compare
        self._warm: set[int] = set()
        self._replay: Callable[[], None] | None = None
        self._step = 0  # of the capture

    @property
    def is_captured(self) -> bool:
        return self._replay is not None

    def plainly(self, function: Callable[[], T]) -> T:
        """``function``, which does what this one does."""
        result = self._graphs.eagerly(function)
        self._warm.add(get_ident())
        return result

    def __call__(self, step: int) -> T:
        if self._replay is None:
            if get_ident() not in self._warm:
                return self.plainly(self._function)
            with _without_version_checks():
                self.result, self._replay = self._graphs.capture(self._function)
            self._step = step
        if self._compare and step != self._step:
            self._compare = False
            self._compare_with_plain(step, self._replay)
        else:
            self._replay()
        return self.result

    def _compare_with_plain(self, step: int, replay: Callable[[], None]) -> None:
        """At another step than that of the capture, so that what it has frozen shows."""
        inner, eagerly = self._inner, self._graphs.eagerly
        before = Moment(inner)
        replay()
        replayed = pytree.map_tensors(Tensor.clone, (self.result, list(inner.model.buffers())))
        before.put_back()
        plain = eagerly(self._function), list(inner.model.buffers())
        if same_bits(plain, replayed):
            return
        plain = pytree.map_tensors(Tensor.clone, plain)
        before.put_back()
        if same_bits((eagerly(self._function), list(inner.model.buffers())), plain):
            raise RuntimeError(
                f"cuda_graph: at step {step} the captured graph gave another loss, gradient or buffer than the loss itself does: "
                "its Python code does not do the same at every step (it draws from Python or NumPy, counts, makes tensors anew "
                "that it reads later), and a graph holds what was done when it was captured. Draw with torch on the GPU, pass "
                "what changes in the batch as a tensor, or leave cuda_graph=True out"
            )


class Moment:
    """What evaluations change beside their results: random numbers and the model's buffers, as they are when this is made."""

    def __init__(self, gradient: LossGradient) -> None:
        self._random = RandomStates(gradient.cuda_devices)
        places = [(module._buffers, name) for module in gradient.model.modules() for name in module._buffers]
        self._buffers = [(of, name, b, b.clone()) for of, name in places if (b := of[name]) is not None]

    def put_back(self) -> None:
        self._random.put_back()
        for of, name, buffer, before in self._buffers:
            of[name] = buffer  # a module may have put another one there
            buffer.copy_(before)


@contextmanager
def _without_version_checks() -> Iterator[None]:
    """What is captured in here saves tensors for products that come after any number of steps, whose writes to weights and batch
    are as they should be: the evaluation is replayed in between. Torch would count them as errors."""
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield
