"""Parameters of one device, and flat vectors with a part for each: what integer and float states have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents, Problem
from reversible_hypergrad.problem.setting import Setting

__all__ = ["FlatGroup"]


class FlatGroup:
    """Parameters on one device. A vector of the adjoint is one flat tensor with a part per parameter.

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

    def vector(self) -> Tensor:
        return torch.zeros(self.offsets[-1], dtype=self.dtype, device=self.device)

    def view(self, vector: Tensor, i: int) -> Tensor:
        """The part of ``vector`` that belongs to the ``i``-th member, in its shape and memory order."""
        weight = self.weights[i]
        return vector.as_strided(weight.shape, weight.stride(), self.offsets[i])

    def view_rows(self, matrix: Tensor, i: int) -> Tensor:
        """The part of every row of ``matrix`` that belongs to the ``i``-th member, in its shape."""
        weight = self.weights[i]
        shape, strides = (len(matrix), *weight.shape), (matrix.stride(0), *weight.stride())
        return matrix.as_strided(shape, strides, matrix.storage_offset() + self.offsets[i])

    def view_of_flat(self, flat: Tensor, i: int) -> Tensor:
        """A vector of one member alone, in its shape and memory order."""
        return flat.as_strided(self.weights[i].shape, self.weights[i].stride(), flat.storage_offset())

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

    def add_elements(self, setting: Setting, index: int, totals: Cotangents, values: Tensor) -> None:
        """The derivatives by a setting with a value per weight, those of the ``index``-th member: one step's."""
        assert setting.source is not None
        target = totals.sources[setting.source]
        target += self.view_of_flat(values, index).reshape(target.shape).to(target.device)
