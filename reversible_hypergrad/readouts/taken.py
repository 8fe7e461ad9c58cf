"""The readouts of one run, on its way forward and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents, Downstream
from reversible_hypergrad.readouts.base import Readout, Sum
from reversible_hypergrad.readouts.losses import Losses, LossOf

__all__ = ["Readouts"]


class Readouts:
    """Sums of weights, and losses, taken while a run passes by.

    Outputs are numbered through: for each sum one per weight, then a vector for each readout of losses.

    Args:
        readouts: by name.
        steps: of the run.
        names: of the weights.
        weights: what the run moves in place.
        loss_of: makes the loss of a readout, from the user's function and its batches.

    Raises:
        ValueError: for what the run does not have.
    """

    def __init__(
        self,
        readouts: Mapping[str, Readout],
        steps: range,
        names: Sequence[str],
        weights: Sequence[Tensor],
        loss_of: Callable[[Any, Any], LossOf],
    ) -> None:
        self.names, self.weights = list(names), list(weights)
        self._readouts = dict(readouts)
        self._counts: dict[str, int] = {}
        self.sums: list[Sum] = []
        self.losses: list[Losses] = []
        self._is_loss: dict[str, bool] = {}
        for name, readout in self._readouts.items():
            declared = readout.losses(steps)
            own = readout.sums(steps)
            self._is_loss[name], self._counts[name] = declared is not None, len(own)
            self.sums += own
            if declared is not None:
                loss, batch, moments = declared
                self.losses.append(Losses(loss_of(loss, batch if callable(batch) else lambda _, batch=batch: batch), moments))
        self._with_inputs = [j for j, own in enumerate(self.sums) if own.coefficients is not None]
        self._taken: list[list[Tensor] | None] = []

    @property
    def inputs(self) -> list[Tensor]:
        """Coefficients that want gradients."""
        return [own.coefficients for own in self.sums if own.coefficients is not None]

    def __bool__(self) -> bool:
        return bool(self.sums or self.losses)

    # Forward

    def begin(self, taken: int) -> None:
        """A run begins, or begins again, with the weights after ``taken`` steps."""
        self._taken = [None] * len(self.sums)
        for losses in self.losses:
            losses.begin()
        self.see(taken)

    def see(self, taken: int) -> None:
        """The run's weights are those after ``taken`` steps."""
        for j, own in enumerate(self.sums):
            term = own.term(taken)
            if term is not None:
                self._add(j, term.coefficient)
        for losses in self.losses:
            losses.see(taken)

    def _add(self, j: int, coefficient: float) -> None:
        with torch.no_grad():
            kept = self._taken[j]
            if kept is None:
                self._taken[j] = [w.detach().to(_wide(w), copy=True).mul_(coefficient) for w in self.weights]
            else:
                torch._foreach_add_(kept, [w.detach().to(_wide(w)) for w in self.weights], alpha=coefficient)

    def kept(self) -> list[Any]:
        """What :meth:`restore` takes, to go on from here in another process."""
        return [[None if own is None else list(own) for own in self._taken], [losses.values for losses in self.losses]]

    def restore(self, kept: list[Any]) -> None:
        taken, values = kept
        self._taken = [None if own is None else [t.clone() for t in own] for own in taken]
        for losses, own in zip(self.losses, values, strict=True):
            losses.values = list(own)

    def outputs(self) -> list[Tensor]:
        found = []
        for kept in self._taken:
            values = kept if kept is not None else [torch.zeros_like(w, requires_grad=False) for w in self.weights]
            found += [value.to(w.dtype) for value, w in zip(values, self.weights, strict=True)]
        return found + [losses.output(self.weights[0]) for losses in self.losses]

    def results(self, outputs: Sequence[Tensor]) -> dict[str, Any]:
        """What the user gets, by name."""
        count = len(self.weights)
        sums = iter([dict(zip(self.names, outputs[j * count :], strict=False)) for j in range(len(self.sums))])
        losses = iter(outputs[len(self.sums) * count :])
        results = {}
        for name, readout in self._readouts.items():
            own: list[Any] = [next(losses)] if self._is_loss[name] else [next(sums) for _ in range(self._counts[name])]
            results[name] = readout.result(own)
        return results

    # Back

    def zeros(self) -> list[Tensor]:
        """For the gradients by :attr:`inputs`."""
        device = self.weights[0].device
        return [torch.zeros(own.shape, dtype=torch.float64, device=device) for own in self.inputs]

    def pull(
        self, taken: int, downstream: Sequence[Downstream], by_weights: Sequence[Sequence[Tensor]], totals: Sequence[Cotangents]
    ) -> None:
        """What flows through the readouts of this moment, at its weights.

        Args:
            downstream: of each loss.
            by_weights: of each loss, what gets the gradients by the weights, one tensor of its shape per weight.
            totals: of each loss, what gets those by coefficients and hyperparameters.
        """
        count = len(self.weights)
        for j, own in enumerate(self.sums):
            term = own.term(taken)
            if term is None:
                continue
            for one, views, total in zip(downstream, by_weights, totals, strict=True):
                given = one.readouts[j * count : (j + 1) * count]
                pairs = [(view, w, c) for view, w, c in zip(views, self.weights, given, strict=True) if c is not None]
                for view, _, c in pairs:
                    view.add_(c, alpha=term.coefficient)
                if term.place is not None:
                    place = self._with_inputs.index(j)
                    for _, w, c in pairs:
                        total.readouts[place][term.place] += torch.sum(c.double() * w.detach().double())
        first = len(self.sums) * count
        for k, losses in enumerate(self.losses):
            losses.pull(taken, [one.readouts[first + k] for one in downstream], by_weights, totals)


def _wide(weight: Tensor) -> torch.dtype:
    """Sums of 16-bit weights would lose what they add."""
    return torch.promote_types(weight.dtype, torch.float32)
