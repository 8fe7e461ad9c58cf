"""What an evaluation of a loss changes beside its result."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reversible_hypergrad.problem.gradient import SideEffects
from reversible_hypergrad.replay.environment import RandomStates

__all__ = ["Buffers", "LossSideEffects"]


class Buffers:
    """The buffers of a model, as they are when this is made."""

    def __init__(self, model: nn.Module) -> None:
        places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        self._buffers = [(of, name, b, b.clone()) for of, name in places if (b := of[name]) is not None]

    @property
    def copies(self) -> list[Tensor]:
        return [copy for *_, copy in self._buffers]

    def put_back(self) -> None:
        for of, name, buffer, copy in self._buffers:
            of[name] = buffer  # a module may have put another one there
            buffer.copy_(copy)


class LossSideEffects(SideEffects):
    """Those of a loss of ``model``: its buffers, and the global generators, those of ``cuda_devices`` included."""

    def __init__(self, model: nn.Module, cuda_devices: Iterable[torch.device]) -> None:
        self._random, self._buffers = RandomStates(cuda_devices), Buffers(model)
        self.buffers = self._buffers.copies

    def put_back(self) -> None:
        self._random.put_back()
        self._buffers.put_back()
