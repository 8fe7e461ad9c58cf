"""Losses that read buffers which they move: a part of the training state that no adjoint knows of."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.replay.environment import RandomStates

__all__ = ["BufferReads"]


_Loss = Callable[[Sequence[Tensor]], Tensor]  # of weights


class BufferReads:
    """Looks whether a loss depends on what it has written of the weights to the model's buffers.

    Where steps are evaluated again on the way back, their losses tell. Where they are not, a loss is evaluated once more as soon
    as it has moved a buffer, with the moved ones and the same random numbers. If it is another one then, and other weights would
    have moved a buffer elsewhere, it reads what follows the weights. Integers do not: they have no derivative.

    Args:
        model: of the run.
        cuda_devices: whose random numbers it may draw.
    """

    def __init__(self, model: nn.Module, cuda_devices: Iterable[torch.device]) -> None:
        self._modules = [(name, module) for name, module in model.named_modules() if module._buffers]
        self._frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        self._cuda_devices = tuple(cuda_devices)
        self.at_once = False  # whether to look in every loss, since none comes again

    def evaluate(self, loss: _Loss, weights: Sequence[Tensor]) -> Tensor:
        """``loss(weights)``.

        Raises:
            RuntimeError: if a buffer is attached to a graph afterwards, which would join steps; and, at once, if the loss reads a
                buffer that follows the weights, or writes to a frozen parameter.
        """
        watched = self.at_once and (self._modules or self._frozen)
        found = self._watched(loss, weights) if watched else loss(weights)
        for name, buffer in self._present():
            if buffer.grad_fn is not None:
                raise RuntimeError(
                    f"loss: expected buffers without a graph, got {name!r} attached to that of this step, through which later "
                    "steps would be differentiated, or not, as it happens. Update it under no_grad(), or from detach()ed tensors"
                )
        return found

    def _watched(self, loss: _Loss, weights: Sequence[Tensor]) -> Tensor:
        random, before = RandomStates(self._cuda_devices), self._copies()
        versions = [p._version for _, p in self._frozen]
        found = loss(weights)
        for (name, p), version in zip(self._frozen, versions, strict=True):
            if p._version != version:
                raise RuntimeError(
                    f"loss: the loss or the model wrote to the frozen parameter {name!r}, whose changes this strategy would not "
                    "differentiate. Take one that replays, such as rh.Snapshots() or rh.Reversible(), which tells if the loss "
                    "reads it, or leave the write out"
                )
        now = self._copies()
        moved = [name for name, copy in before.items() if not same_bits(copy, now.get(name))]
        if not moved or not isinstance(found, Tensor):
            return found
        again, _ = self._again(loss, weights, random, now)
        if same_bits(found.detach(), again):
            return found
        _, elsewhere = self._again(loss, [w.detach() * 1.0625 + 0.0625 for w in weights], random, before)
        following = [name for name in moved if not same_bits(now.get(name), elsewhere.get(name))]
        if following:
            raise RuntimeError(
                f"loss: the buffers {', '.join(map(repr, following[:3]))} follow the weights, and it is another one when it is "
                "evaluated again after they have moved, so it reads some, or draws unseeded random numbers. What a "
                "buffer remembers of earlier weights has a derivative that no strategy computes, as that of a teacher, or of the "
                "vectors of spectral_norm. Keep the buffer still (eval mode), or compute it from the present weights in the loss"
            )
        return found

    def _again(
        self, loss: _Loss, weights: Sequence[Tensor], random: RandomStates, buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with the random numbers of before and copies of ``buffers``, and where it moves them. It leaves no trace."""
        after = RandomStates(self._cuda_devices)
        places = [(m._buffers, own, b, _joined(name, own)) for name, m in self._modules for own, b in m._buffers.items()]
        copies = {id(b): buffers.get(name, b).detach().clone() for *_, b, name in places if b is not None}  # some are shared
        try:
            for of, own, b, _ in places:
                of[own] = copies.get(id(b))
            random.put_back()
            return loss(weights).detach(), self._copies()
        finally:
            for of, own, b, _ in places:
                of[own] = b  # the very tensor: a graph may hold it, so that it must not be written to
            after.put_back()

    def _copies(self) -> dict[str, Tensor]:
        return {name: buffer.detach().clone() for name, buffer in self._present() if buffer.is_floating_point()}

    def _present(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self._modules:
            for own, buffer in module._buffers.items():
                if buffer is not None:
                    yield _joined(name, own), buffer


def _joined(module: str, buffer: str) -> str:
    return f"{module}.{buffer}" if module else buffer
