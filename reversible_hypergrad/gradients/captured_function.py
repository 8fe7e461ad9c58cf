"""A function of tensors that stay where they are: captured, replayed, and compared once with what it gives by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.graphs import Graphs
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.problem.gradient import SideEffects

__all__ = ["CapturedFunction"]

T = TypeVar("T")


class CapturedFunction(Generic[T]):
    """The first call in a thread runs it as it is; the next one captures it, and from there on it is replayed.

    A thread of its own, because libraries keep handles per thread, which cannot be made inside a capture; and train()'s backward
    is not in the thread of its forward.

    Args:
        graphs: what captures.
        function: reads and writes tensors that stay where they are.
        side_effects: of the function, as they are when this is called; None if it has none. A replay of another step than the
            captured one is compared with the plain result then.
    """

    result: T  # of the capture

    def __init__(self, graphs: Graphs, function: Callable[[], T], side_effects: Callable[[], SideEffects] | None = None) -> None:
        self._graphs, self._function, self._side_effects = graphs, function, side_effects
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
            with Uninterrupted(), _without_version_checks():
                self.result, self._replay = self._graphs.capture(self._function)
            self._step = step
        if self._side_effects is not None and step != self._step:
            # At another step than that of the capture, so that what it has frozen shows.
            side_effects, self._side_effects = self._side_effects, None
            self._compare_with_plain(step, self._replay, side_effects)
        else:
            self._replay()
        return self.result

    def _compare_with_plain(self, step: int, replay: Callable[[], None], side_effects: Callable[[], SideEffects]) -> None:
        before = side_effects()
        replay()
        replayed = pytree.map_tensors(Tensor.clone, self.result), side_effects().buffers
        before.put_back()
        plain = self._graphs.eagerly(self._function), side_effects().buffers
        if same_bits(plain, replayed):
            return
        plain = pytree.map_tensors(Tensor.clone, plain)
        before.put_back()
        if same_bits((self._graphs.eagerly(self._function), side_effects().buffers), plain):
            raise RuntimeError(
                f"cuda_graph: at step {step} the captured graph gave another loss, gradient or buffer than the loss itself does: "
                "its Python code does not do the same at every step (it draws from Python or NumPy, counts, makes tensors anew "
                "that it reads later), and a graph holds what was done when it was captured. Draw with torch on the GPU, pass "
                "what changes in the batch as a tensor, or leave cuda_graph=True out"
            )


@contextmanager
def _without_version_checks() -> Iterator[None]:
    """What is captured in here saves tensors for products that come after any number of steps, whose writes to weights and batch
    are as they should be: the evaluation is replayed in between. Torch would count them as errors."""
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield
