"""One setting of an optimizer as a run uses it: a number per step, or one per weight."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

__all__ = ["Setting", "Settings", "tree_sum"]


@dataclass(frozen=True, eq=False)
class Setting:
    """One of a rule's settings, such as lr, for one or several parameters. Compared by identity."""

    numbers: "array[float]"  # one for all steps, or one per step of the run; empty if elementwise
    elementwise: Tensor | None = None  # one per weight, flat, in the weight's memory order
    source: int | None = None  # which tensor given to the optimizer gets its gradient; None: no gradient is wanted
    first: int = 0  # the run's first step, counted as all steps are: from the first of the runs that this one continues
    place: int | None = None  # where in the tensor the first step's number is; None: one for all steps

    def at(self, step: int) -> float:
        return self.numbers[step - self.first] if len(self.numbers) > 1 else self.numbers[0]

    def between(self, steps: range) -> "array[float]":
        """One number for all steps, or those of ``steps``."""
        return self.numbers[steps.start - self.first : steps.stop - self.first] if len(self.numbers) > 1 else self.numbers

    def accumulate(self, gradients: Sequence[Tensor], step: int, value: Tensor) -> None:
        """Adds one step's derivative. ``gradients`` holds one tensor per source, shaped as the source."""
        assert self.source is not None
        target = gradients[self.source]
        value = value.to(target.device)
        if self.place is not None:
            target.view(-1)[self.place + step - self.first] += value
        else:
            target += value.reshape(target.shape)

    def accumulate_steps(self, gradients: Sequence[Tensor], first: int, values: Tensor) -> None:
        """Adds the derivatives of neighbouring steps, ``values`` from step ``first`` on, in one order on every device."""
        assert self.source is not None
        target = gradients[self.source]
        values = values.to(target.device)
        if self.place is not None:
            begin = self.place + first - self.first
            target.view(-1)[begin : begin + len(values)] += values
        else:
            target += tree_sum(values).reshape(target.shape)


def tree_sum(values: Tensor) -> Tensor:
    """The sum along the last dimension: the halves are added until one is left, so that every device gives the same bits."""
    while values.shape[-1] > 1:
        half = (values.shape[-1] + 1) // 2
        low, high = values[..., :half].clone(), values[..., half:]
        low[..., : high.shape[-1]] += high
        values = low
    return values[..., 0]


# What the optimizer does with one parameter: name -> setting, in the order of the rule's declaration.
Settings: TypeAlias = Mapping[str, Setting]
