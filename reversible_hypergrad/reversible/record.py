"""What a step is given beside its gradient, and what undoing it needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.scales import Scales, ScaleState

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
        settings: the rule's ``h`` of each tensor, or one for all.
        steps: its ``t``, of each tensor, or one for all.
    """

    factors: Floats
    of_rule: Floats
    elements: tuple[Tensor, ...] = ()
    settings: tuple[Any, ...] = ()
    steps: tuple[int, ...] = (0,)

    @classmethod
    def joined(cls, rows: Sequence["StepNumbers"]) -> "StepNumbers":
        """Those of several tensors, one for all each, as one."""
        return cls(
            np.stack([row.factors for row in rows]),
            np.stack([row.of_rule for row in rows]),
            settings=tuple(row.settings[0] for row in rows),
            steps=tuple(row.steps[0] for row in rows),
        )

    def of(self, i: int) -> tuple[Any, int]:
        """``h`` and ``t`` of the ``i``-th tensor."""
        return self.settings[i if len(self.settings) > 1 else 0], self.steps[i if len(self.steps) > 1 else 0]


@dataclass
class Record:
    """What undoing one step of a state needs, beside the gradient.

    Attributes:
        given: the step's settings.
        scales: of all slots before the step.
        scales_after: the same after it.
        numbers: float64 table for the kernels; a row per tensor, with the scales of the step.
        shifts: int64 table for the kernels; a row per tensor: whether it took part, then shift and centre per slot.
        plane_bytes: what the bits take that the step shifted out.
        planes: these bits, uint8.
        hash_before: of the state before the step, or who will know it; None: not checked.
        inactive: tensors that took no part; None: all did.
        logged: what a rule logged, per tensor; None for most rules.
        signs: the planes of the signs that a rule keeps, per tensor; None for most rules.
        unset: which states were zero before the step, their scales still to be chosen.
        owed: bits by which the slots were to be shifted in this step, whatever it brought.
        room: bits by which they were, those included; None: none.
        after: once undone, what the state kept on the host after the step: scales, and the two above.
    """

    given: StepNumbers
    scales: ScaleState
    scales_after: ScaleState
    numbers: Tensor
    shifts: Tensor
    plane_bytes: int
    planes: Tensor
    hash_before: int | Outcome | None = None
    inactive: NDArray[np.bool_] | None = None
    logged: Any = None
    signs: list[Tensor] | None = None
    unset: NDArray[np.bool_] | None = None
    owed: Integers | None = None
    room: Integers | None = None
    after: tuple[ScaleState, NDArray[np.bool_], Integers] = field(init=False, repr=False)

    @classmethod
    def of_decay(
        cls,
        scales: Scales,
        given: StepNumbers,
        inactive: NDArray[np.bool_] | None,
        room: Integers | None,
        planes: Tensor,
    ) -> "Record":
        """Of the next step by ``scales``, which are those after it from then on."""
        before = scales.state
        move = scales.decay(given.factors, given.of_rule, None if inactive is None else ~inactive, room)
        return cls(given, before, scales.state, *move.tables(), planes, inactive=inactive, room=room)

    @property
    def active(self) -> list[bool]:
        """Which tensors took part."""
        return [bool(row) for row in self.shifts[:, 0].tolist()]


def combine(first: int, second: int) -> int:
    """Hashes of two parts of a state add up, modulo 2^64, as int64."""
    return (first + second + 2**63) % 2**64 - 2**63
