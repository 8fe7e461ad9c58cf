"""What an evaluation of a loss changes beside its result."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.problem.gradient import SideEffects
from reversible_hypergrad.replay.environment import RandomStates

__all__ = ["Buffers", "LossSideEffects"]


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


class LossSideEffects(SideEffects):
    """Those of a loss of ``model``: its buffers, and the global generators, those of ``cuda_devices`` included."""

    def __init__(self, model: nn.Module, cuda_devices: Iterable[torch.device]) -> None:
        self._random, self._buffers = RandomStates(cuda_devices), Buffers(model)
        self.buffers = self._buffers.copies

    def put_back(self) -> None:
        self._random.put_back()
        self._buffers.put_back()
