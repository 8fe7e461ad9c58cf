"""What a readout declares: sums of weights along a run, or losses there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reversible_hypergrad.checks import check_integer

__all__ = ["Readout", "Sum", "Term", "check_steps"]


class Term(NamedTuple):
    """What one moment's weights add to a sum."""

    coefficient: float
    place: int | None = None  # in the sum's ``coefficients``, if the coefficient is one of a tensor


class Sum(ABC):
    """A weighted sum of a run's weights, which is all that a readout of weights can be: linear in them."""

    coefficients: Tensor | None = None  # float64, flat, attached to whatever the coefficients are made of; None: just numbers

    @abstractmethod
    def term(self, taken: int) -> Term | None:
        """Of the weights after ``taken`` steps; None if they do not count."""


class Readout(ABC):
    """Something to take from a run: ``train(..., readouts={"name": readout})``, then ``trained.readouts["name"]``."""

    @abstractmethod
    def sums(self, steps: range) -> list[Sum]:
        """Of a run of ``steps``. Empty if it is losses.

        Raises:
            ValueError: for what the run does not have.
        """

    def losses(self, steps: range) -> "tuple[Callable[[nn.Module, Any, Any], Tensor], Any, list[int]] | None":
        """A loss, what gives its batches, and after how many steps it is taken; None if there is none."""
        return None

    def result(self, outputs: list[Any]) -> Any:
        """What the user gets.

        Args:
            outputs: per sum, name -> tensor; or the vector of losses.
        """
        (output,) = outputs
        return output


def check_steps(label: str, given: Iterable[int], steps: range) -> list[int]:
    """Numbers of steps taken, in ascending order, or an error that names ``label``."""
    found = list(given)
    for taken in found:
        check_integer(label, taken)
        if not steps.start <= taken <= steps.stop:
            raise ValueError(f"{label}: expected numbers of steps taken from {steps.start} to {steps.stop}, got {taken}")
    if not found or sorted(set(found)) != found:
        raise ValueError(f"{label}: expected ascending numbers of steps, at least one, got {found}")
    return found


def as_coefficients(values: Tensor) -> Tensor:
    """Float64, on the CPU."""
    return values.to("cpu", torch.float64)
