"""How readouts change with every hyperparameter, carried along with training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.floats import FloatGroup
from reversible_hypergrad.problem.problem import Downstream, Problem

__all__ = ["ReadoutTangents"]


class ReadoutTangents:
    """A matrix for each sum of weights and group, one for each vector of losses; a row per hyperparameter.

    Args:
        count: of rows.
        of_inputs: the first row of each of the readouts' inputs.
        of_hyperparameters: and of each of the loss's hyperparameters.
    """

    def __init__(self, problem: Problem, count: int, of_inputs: Sequence[int], of_hyperparameters: Sequence[int]) -> None:
        self._problem, self._count = problem, count
        self.of_inputs, self._of_hyperparameters = of_inputs, of_hyperparameters
        self._groups: Sequence[FloatGroup] = []
        self._w: Sequence[Tensor] = []
        self._sums: list[list[Tensor]] = []
        self._losses: list[Tensor] = []

    def begin(self, groups: Sequence[FloatGroup], w: Sequence[Tensor]) -> None:
        """``w``: the tangents of each group's weights, moved in place; empty if there will be no way back."""
        readouts = self._problem.readouts
        if readouts is None:
            return
        self._groups, self._w = groups, w
        self._sums = [[torch.zeros_like(rows) for rows in w] for _ in readouts.sums]
        counts = [len(losses.places) for losses in readouts.losses]
        self._losses = [torch.zeros(self._count, n, dtype=torch.float64, device=groups[0].device) for n in counts]
        readouts.begin(self._problem.steps.start)
        self._add(self._problem.steps.start)

    def see(self, taken: int) -> None:
        if self._problem.readouts is not None:
            self._problem.readouts.see(taken)
            self._add(taken)

    def _add(self, taken: int) -> None:
        readouts = self._problem.readouts
        assert readouts is not None
        if not self._w:
            return
        inputs = iter(self.of_inputs)
        for own, tangents in zip(readouts.sums, self._sums, strict=True):
            first = None if own.coefficients is None else next(inputs)
            term = own.term(taken)
            if term is None:
                continue
            for group, tangent, rows in zip(self._groups, tangents, self._w, strict=True):
                tangent.add_(rows, alpha=term.coefficient)
                if first is not None and term.place is not None:
                    tangent[first + term.place] += group.w
        for losses, tangent in zip(readouts.losses, self._losses, strict=True):
            if taken not in losses.places:
                continue
            with losses.loss.aside():
                by_weights, by_hyperparameters = losses.loss.first_order(losses.loss.batch(taken))
            column = tangent[:, losses.places[taken]]
            for group, rows in zip(self._groups, self._w, strict=True):
                column += rows @ group.gather(by_weights)
            for first, by in zip(self._of_hyperparameters, by_hyperparameters, strict=False):
                if by is not None:
                    column[first : first + by.numel()] += by.reshape(-1)

    def pull_back(self, downstream: Downstream) -> Tensor:
        """What the outputs' cotangents come to, per row."""
        found = torch.zeros(self._count, dtype=torch.float64, device=self._problem.weights[0].device)
        count = len(self._problem.weights)
        for j, tangents in enumerate(self._sums):
            given = downstream.readouts[j * count : (j + 1) * count]
            for group, tangent in zip(self._groups, tangents, strict=True):
                found += tangent @ group.gather(given)
        for k, tangent in enumerate(self._losses):
            by = downstream.readouts[len(self._sums) * count + k]
            if by is not None:
                found += tangent @ by.double()
        return found
