"""Readouts as part of autograd's graph of a run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Problem

__all__ = ["AttachedReadouts"]


class AttachedReadouts:
    """Those of a problem, beside a graph of its steps.

    Attributes:
        outputs: numbered as :class:`Readouts` numbers them.
        leaves: in place of its inputs.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._record = problem, False
        self.outputs: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._sums: list[list[Tensor]] = []
        self._losses: list[list[Tensor]] = []

    def begin(self, weights: Sequence[Tensor], record: bool) -> None:
        self._record = record
        readouts = self._problem.readouts
        if readouts is None:
            return
        begun = self._problem.steps.start
        self.outputs = []
        self.leaves = [own.detach().clone().requires_grad_() for own in readouts.inputs]
        self._sums = [[torch.zeros_like(w) for w in weights] for _ in readouts.sums]
        zero = torch.zeros((), dtype=weights[0].dtype, device=weights[0].device)
        self._losses = [[zero] * len(losses.places) for losses in readouts.losses]
        if self._problem.sees_start:
            readouts.begin(begun)
            self._attach(begun, weights)

    def see(self, taken: int, weights: Sequence[Tensor]) -> None:
        readouts = self._problem.readouts
        if readouts is None:
            return
        for own, w in zip(self._problem.weights, weights, strict=True):
            own.data.copy_(w.detach())
        readouts.see(taken)
        self._attach(taken, weights)

    def publish(self) -> None:
        """After the last step."""
        if self._problem.readouts is not None and self._record:
            self.outputs = [tensor for own in self._sums for tensor in own]
            with torch.enable_grad():
                self.outputs += [torch.stack([value.reshape(()) for value in own]) for own in self._losses]

    def _attach(self, taken: int, weights: Sequence[Tensor]) -> None:
        readouts = self._problem.readouts
        assert readouts is not None
        if not self._record:
            return
        leaves = iter(self.leaves)
        with torch.enable_grad():
            for j, own in enumerate(readouts.sums):
                leaf = None if own.coefficients is None else next(leaves)
                term = own.term(taken)
                if term is None:
                    continue
                factor = term.coefficient if leaf is None or term.place is None else leaf[term.place]
                self._sums[j] = [total + (w * factor).to(w.dtype) for total, w in zip(self._sums[j], weights, strict=True)]
            for losses, values in zip(readouts.losses, self._losses, strict=True):
                if taken in losses.places:
                    with losses.loss.aside():
                        values[losses.places[taken]] = losses.loss.value_at(losses.loss.batch(taken), weights)
