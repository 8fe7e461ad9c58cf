"""What an evaluation of a loss changes beside its result."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.problem.gradient import SideEffects
from reversible_hypergrad.replay.environment import RandomStates

__all__ = ["Buffers", "LossSideEffects", "set_aside"]


class Buffers:
    """The buffers of a model, as they are when this is made."""

    def __init__(self, model: nn.Module) -> None:
        places = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items()]
        self._buffers = [(of, name, b, None if b is None else b.clone()) for of, name, b in places]

    @property
    def copies(self) -> list[Tensor]:
        return [copy for *_, copy in self._buffers if copy is not None]

    def put_back_moved(self) -> None:
        """As :meth:`put_back`, and writes to none that is as it was: torch would count that, and refuse a graph that holds it."""
        for of, name, buffer, copy in self._buffers:
            of[name] = buffer
            if buffer is not None and copy is not None and not same_bits(buffer, copy):
                buffer.copy_(copy)

    def put_back(self) -> None:
        for of, name, buffer, copy in self._buffers:
            of[name] = buffer  # a module may have put another one there
            if buffer is not None and copy is not None:
                buffer.copy_(copy)


@contextmanager
def set_aside(model: nn.Module, cuda_devices: Iterable[torch.device]) -> Iterator[None]:
    """Inside, a loss of ``model`` moves copies of its buffers. Afterwards they and the global generators are as before, and
    nothing has been written to: a graph may hold the buffers."""
    random = RandomStates(cuda_devices)
    places = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items()]
    copies = {id(b): b.clone() for *_, b in places if b is not None}  # some are shared
    try:
        for of, name, buffer in places:
            of[name] = copies.get(id(buffer))
        yield
    finally:
        for of, name, buffer in places:
            of[name] = buffer
        random.put_back()


class LossSideEffects(SideEffects):
    """Those of a loss of ``model``: its buffers, and the global generators, those of ``cuda_devices`` included."""

    def __init__(self, model: nn.Module, cuda_devices: Iterable[torch.device]) -> None:
        self._random, self._buffers = RandomStates(cuda_devices), Buffers(model)
        self.buffers = self._buffers.copies

    def put_back(self) -> None:
        self._random.put_back()
        self._buffers.put_back()
