"""The nest of hyperparameters that an outer loop moves."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.bilevel.sets import Set
from reversible_hypergrad.reversible.parameters import check_apart

__all__ = ["Hyperparameters"]

T = TypeVar("T")


class Hyperparameters:
    """Copies of the tensors of a nest that require grad, in the same nest.

    Attributes:
        nest: as the user gave it, with the copies in it.
        learned: name -> copy, in the order of ``pytree.leaves``; a tensor that is twice in the nest is once here.

    Raises:
        TypeError: if one of them is not of real floating-point numbers.
        ValueError: if there is none, one is not finite or is computed from others, or two share memory.
    """

    def __init__(self, nest: Any) -> None:
        self._given, self._structure = pytree.flatten(nest)
        self._names = pytree.names(nest)
        firsts: dict[int, str] = {}
        for name, leaf in zip(self._names, self._given, strict=True):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                firsts.setdefault(id(leaf), name)
        given = {firsts[id(x)]: x for x in self._given if id(x) in firsts}
        _check(given)
        self.learned = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
        self._places = [firsts.get(id(x)) for x in self._given]
        self.nest = self.with_values(list(self.learned.values()))

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.learned.values())

    def values(self) -> list[Tensor]:
        """Copies of what they are now."""
        return [x.detach().clone() for x in self.leaves]

    @torch.no_grad()
    def move_to(self, values: Sequence[Tensor]) -> None:
        for leaf, value in zip(self.leaves, values, strict=True):
            leaf.copy_(value)

    def with_values(self, values: Sequence[Tensor]) -> Any:
        """The nest, with these in the learned ones' places."""
        by_name = dict(zip(self.learned, values, strict=True))
        leaves = [x if name is None else by_name[name] for name, x in zip(self._places, self._given, strict=True)]
        return pytree.unflatten(leaves, self._structure)

    def spread(self, argument: str, given: Mapping[str, T] | T | None) -> dict[str, T]:
        """What was given by name, or once for all, for each learned one; names of entries that hold others stand for these.

        Args:
            argument: its name, for errors.
            given: one for all, or by name. The longest name counts.

        Raises:
            ValueError: for a name of none of them.
        """
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            return dict.fromkeys(self.learned, given)
        for name in given:
            if not any(_is_in(own, name) for own in self.learned):
                others = ", ".join(own or "(h itself)" for own in self.learned)
                known = "does not require grad" if any(_is_in(own, str(name)) for own in self._names) else "is none of h's"
                raise ValueError(f"{argument}: expected names of learned hyperparameters ({others}), got {name!r}, which {known}")
        found = {}
        for own in self.learned:
            fitting = [name for name in given if _is_in(own, name)]
            if fitting:
                found[own] = given[max(fitting, key=len)]
        return found

    def check_sets(self, sets: Mapping[str, Set]) -> None:
        """Raises ValueError for hyperparameters outside their set, TypeError for what is no set."""
        for name, own in sets.items():
            if not isinstance(own, Set):
                raise TypeError(f"sets: expected sets such as rh.Box(0, 1), by name of a hyperparameter, got {own!r}")
            x = self.learned[name]
            distance = own.distance(x)
            # What was typed or computed in x's dtype is off by some roundings; the first projection takes them away.
            if distance > torch.finfo(x.dtype).eps ** 0.5 * max(1.0, float(x.detach().abs().max())):
                raise ValueError(
                    f"{_label(name)}: expected values in {own}, got one that is {distance:.3g} away from it. Begin inside, such "
                    "as at set.project(value)"
                )

    @torch.no_grad()
    def project(self, sets: Mapping[str, Set]) -> None:
        for name, own in sets.items():
            self.learned[name].copy_(own.project(self.learned[name]))

    def are_finite(self) -> bool:
        return all(bool(x.detach().isfinite().all()) for x in self.leaves)


def _check(given: Mapping[str, Tensor]) -> None:
    if not given:
        raise ValueError("h: expected tensors that require grad, which are learned, got none. Use tensor.requires_grad_()")
    for name, x in given.items():
        if not x.is_floating_point():
            raise TypeError(f"{_label(name)}: expected real floating-point numbers, got {x.dtype}. Learn torch.view_as_real(x)")
        if not x.is_leaf:
            raise ValueError(
                f"{_label(name)}: expected a leaf, got a tensor that is computed from others, which would not be learned. Give "
                "those, and compute it in the task, or give it as x.detach().requires_grad_()"
            )
        if not bool(x.detach().isfinite().all()):
            raise ValueError(f"{_label(name)}: expected finite numbers, got others")
    check_apart(given)


def _label(name: str) -> str:
    return f"h: {name}" if name else "h"


def _is_in(own: str, name: str) -> bool:
    return own == name or own.startswith(f"{name}.")
