"""Parameters that move alike, and flat vectors with a part for each: what integer and float states have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents, Problem
from reversible_hypergrad.problem.setting import Setting, Settings

__all__ = ["FlatGroup", "Span"]


class Span(NamedTuple):
    """Neighbouring parameters with one setting."""

    part: slice  # of a vector
    setting: Setting
    first: int  # the first parameter in it


class FlatGroup(ABC):
    """Parameters that share a momentum and a device. A vector of the adjoint is one flat tensor with a part per parameter.

    Args:
        offsets: where each member's part begins in a vector, and the vectors' size. Between the parts there are zeros.
    """

    def __init__(self, problem: Problem, members: Sequence[int], offsets: Sequence[int]) -> None:
        self.members = list(members)
        self.offsets = list(offsets)
        self.weights = [problem.weights[i] for i in members]
        self.settings = [problem.settings[i] for i in members]
        self.device = self.weights[0].device
        self.dtype = torch.float64 if any(w.dtype == torch.float64 for w in self.weights) else torch.float32
        self.size = sum(w.numel() for w in self.weights)
        self.lr_spans = self._spans(lambda s: s.lr)
        self.dampening_spans = self._spans(lambda s: s.dampening)
        self.decay_spans = self._spans(lambda s: s.weight_decay)
        self.momentum = self.settings[0].momentum

    @abstractmethod
    def momentum_at(self, step: int) -> float:
        """As it was used."""

    def dampens(self, step: int) -> bool:
        """As torch does, the first velocity is the gradient, undampened."""
        return step > 0

    def share(self, dampening: Setting, step: int) -> float:
        """1 - dampening, as the step used it."""
        return 1.0 - dampening.at(step) if self.dampens(step) else 1.0

    # Vectors

    def vector(self) -> Tensor:
        return torch.zeros(self.offsets[-1], dtype=self.dtype, device=self.device)

    def view(self, vector: Tensor, i: int) -> Tensor:
        """The part of ``vector`` that belongs to the ``i``-th member, in its shape and memory order."""
        weight = self.weights[i]
        return vector.as_strided(weight.shape, weight.stride(), self.offsets[i])

    def view_of_flat(self, flat: Tensor, i: int) -> Tensor:
        """A vector of one member alone, in its shape and memory order."""
        return flat.as_strided(self.weights[i].shape, self.weights[i].stride())

    def gather(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """A new vector from one tensor per weight of the problem; None stands for zero."""
        vector = self.vector()
        for i, m in enumerate(self.members):
            tensor = tensors[m]
            if tensor is not None:
                self.view(vector, i).copy_(tensor)
        return vector

    def scatter(self, vector: Tensor, into: list[Tensor]) -> None:
        """Views of ``vector`` to the members' places in ``into``, a list with one entry per weight of the problem."""
        for i, m in enumerate(self.members):
            into[m] = self.view(vector, i)

    # What every adjoint does alike

    def directions(self, step: int, av: Tensor) -> Tensor:
        """u = (1 - dampening) * av."""
        shares = [(part, self.share(setting, step)) for part, setting, _ in self.dampening_spans]
        if all(share == 1.0 for _, share in shares):
            return av
        u = av.clone()
        for part, share in shares:
            u[part] *= share
        return u

    def add_elements(self, setting: Setting, index: int, totals: Cotangents, values: Tensor) -> None:
        """The derivatives by a setting with a value per weight, those of the ``index``-th member: one step's."""
        assert setting.source is not None
        target = totals.sources[setting.source]
        target += self.view_of_flat(values, index).reshape(target.shape).to(target.device)

    def _spans(self, of: Callable[[Settings], Setting]) -> list[Span]:
        """Those with a value per weight stand alone, without padding."""
        spans: list[Span] = []
        for i, settings in enumerate(self.settings):
            setting = of(settings)
            if setting.elementwise is not None:
                spans.append(Span(slice(self.offsets[i], self.offsets[i] + self.weights[i].numel()), setting, i))
            elif spans and spans[-1].setting is setting:
                spans[-1] = Span(slice(spans[-1].part.start, self.offsets[i + 1]), setting, spans[-1].first)
            else:
                spans.append(Span(slice(self.offsets[i], self.offsets[i + 1]), setting, i))
        return spans
