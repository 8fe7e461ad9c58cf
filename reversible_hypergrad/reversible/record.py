"""What a step is given beside its gradient, and what undoing it needs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.scales import ScaleState

__all__ = ["Record", "StepNumbers", "combine"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class StepNumbers:
    """One step's settings, as the kernels take them.

    Attributes:
        factors: what each slot decays by, the weight last; of shape (slots,), or (tensors, slots).
        of_rule: what the rule's program takes; of shape (numbers,), or (tensors, numbers).
        elements: empty, or for every tensor and number of the rule: one value per weight in place of it, or an empty tensor.
        settings: of each tensor, the rule's ``h``; and ``step``, its ``t``: for rules without a program.
    """

    factors: Floats
    of_rule: Floats
    elements: tuple[Tensor, ...] = ()
    settings: tuple[Any, ...] = ()
    step: int = 0


@dataclass
class Record:
    """What undoing one step of a state needs, beside the gradient.

    Attributes:
        given: the step's settings.
        scales: of all slots before the step.
        scales_after: the same after it.
        numbers: float64 table for the kernels; a row per tensor, with the scales of the step.
        shifts: int64 table for the kernels; a row per tensor: whether it took part, then shift and centre per slot.
        planes: the bits that the step shifted out, uint8.
        hash_before: of the state before the step, or who will know it; None: not checked.
        logged: what a rule logged, per tensor; None for most rules.
        unset: which states were zero before the step, their scales still to be chosen.
        owed: bits by which the slots were to be shifted in this step, whatever it brought.
        after: once undone, what the state kept on the host after the step: scales, and the two above.
    """

    given: StepNumbers
    scales: ScaleState
    scales_after: ScaleState
    numbers: Tensor
    shifts: Tensor
    planes: Tensor
    hash_before: int | Outcome | None = None
    logged: Any = None
    unset: NDArray[np.bool_] | None = None
    owed: Integers | None = None
    after: tuple[ScaleState, NDArray[np.bool_], Integers] = field(init=False, repr=False)

    @property
    def active(self) -> list[bool]:
        """Which tensors took part."""
        return [bool(row) for row in self.shifts[:, 0].tolist()]


def combine(first: int, second: int) -> int:
    """Hashes of two parts of a state add up, modulo 2^64, as int64."""
    return (first + second + 2**63) % 2**64 - 2**63
