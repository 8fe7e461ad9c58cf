"""How a state begins: at the weights alone, at given states too, or at the very integers where another run ended."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.reversible.exponents import exponent_of_increments, gain_bits
from reversible_hypergrad.reversible.initial import InitialWeights
from reversible_hypergrad.reversible.integers import flat
from reversible_hypergrad.reversible.scales import ScaleState
from reversible_hypergrad.reversible.state import State

__all__ = ["Frozen", "begin"]


@dataclass(frozen=True, eq=False)
class Frozen:
    """A state at one moment: its integers, copied, and what the host keeps of it."""

    names: tuple[str, ...]
    rule: str
    state_bits: int
    x: Tensor
    z: tuple[Tensor, ...]
    scales: ScaleState
    unset: NDArray[np.bool_]
    more_room: NDArray[np.int64]
    taken: int
    initial: tuple[InitialWeights | None, ...]

    @staticmethod
    def of(state: State, at_start: bool) -> "Frozen":
        """``at_start``: whether no step has been taken, so that the visible weights are those that ``state`` was made of."""
        return Frozen(
            *_kind(state),
            x=state.x.clone(),
            z=tuple(z.clone() for z in state.z),
            scales=state.scales.state,
            unset=state.unset.copy(),
            more_room=state.more_room.copy(),
            taken=state.taken,
            initial=tuple(state.initial) if at_start else (None,) * len(state.names),
        )

    def plain(self) -> dict[str, Any]:
        """As a nest of tensors and plain values, for a file."""
        return {
            "kind": [list(self.names), self.rule, self.state_bits],
            "integers": [self.x, *self.z],
            "scales": [torch.from_numpy(own.copy()) for own in (self.scales.a, self.scales.count, self.scales.exponent)],
            "unset": torch.from_numpy(self.unset.copy()),
            "more_room": torch.from_numpy(np.ascontiguousarray(self.more_room)),
            "taken": self.taken,
            "initial": [None if own is None else [own.index, own.value] for own in self.initial],
        }

    @staticmethod
    def from_plain(kept: dict[str, Any], device: torch.device) -> "Frozen":
        names, rule, state_bits = kept["kind"]
        x, *z = (own.to(device) for own in kept["integers"])
        return Frozen(
            tuple(names),
            rule,
            state_bits,
            x=x,
            z=tuple(z),
            scales=ScaleState(*(own.numpy() for own in kept["scales"])),
            unset=kept["unset"].numpy(),
            more_room=kept["more_room"].numpy(),
            taken=kept["taken"],
            initial=tuple(None if own is None else InitialWeights(*own) for own in kept["initial"]),
        )

    def fits(self, state: State) -> bool:
        """Whether it is one of the same tensors, under the same rule, in the same layout and place."""
        mine, own = (self.x, *self.z), (state.x, *state.z)
        return (self.names, self.rule, self.state_bits) == _kind(state) and all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device for a, b in zip(mine, own, strict=True)
        )

    def put_into(self, state: State) -> None:
        """Makes ``state`` this one, but for its visible weights."""
        for integers, own in zip((self.x, *self.z), (state.x, *state.z), strict=True):
            own.copy_(integers)
        state.scales.state, state.taken, state.initial = self.scales, self.taken, list(self.initial)
        state.unset, state.more_room = self.unset.copy(), self.more_room.copy()


def begin(state: State, given: Sequence[Mapping[str, Tensor]], exact: Sequence[Frozen], factors: NDArray[np.float64]) -> None:
    """Brings a new state, at its visible weights, to the states of a run that is continued.

    Args:
        given: per tensor: name of a state -> its values, of the weight's shape; those left out are zero.
        exact: where other states ended. One is used if its weights and states are the visible and the given ones, bit for bit.
        factors: what the slots decay by in the first step; of shape (slots,), or (tensors, slots).
    """
    every = range(len(state.sizes))
    for frozen in exact:
        if frozen.fits(state):
            frozen.put_into(state)
            if not state.edited(every, at_start=every) and _shows(state, given):
                return
            state.allocate(state.weights, state.names, state.rule, state.format.state_bits)
            state.quantize_weights()
    _quantize(state, given, np.broadcast_to(factors, (len(state.sizes), state.slots)))


def _kind(state: State) -> tuple[tuple[str, ...], str, int]:
    return tuple(state.names), type(state.rule).__qualname__, state.format.state_bits


def _ordered(values: Tensor, weight: Tensor) -> Tensor:
    """Flat, in the weight's memory order."""
    own = torch.empty_like(weight, dtype=values.dtype, requires_grad=False)
    return flat(own.copy_(values.detach()))


def _shows(state: State, given: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether its states are the given ones, bit for bit."""
    for i, (own, weight) in enumerate(zip(given, state.weights, strict=True)):
        for k, name in enumerate(state.rule.states):
            values = own.get(name)
            if values is None:
                if bool(state.part(i, state.z[k]).any()):
                    return False
            elif not bool((state.value(i, k, values.dtype) == _ordered(values, weight)).all()):
                return False
    return True


def _quantize(state: State, given: Sequence[Mapping[str, Tensor]], factors: NDArray[np.float64]) -> None:
    now, unset = state.scales.state, state.unset.copy()
    exponent = now.exponent.copy()
    for i, (own, weight) in enumerate(zip(given, state.weights, strict=True)):
        for k, (name, power) in enumerate(state.rule.states.items()):
            values = own.get(name)
            largest = float(values.detach().abs().max()) if values is not None and values.numel() else 0.0
            if values is None or largest == 0:
                continue
            _check(f"start: states[{state.names[i]!r}][{name!r}]", values, largest, power)
            # A state is about as large as what is added to it, times what its decay makes of equal increments.
            factor = float(factors[i, k])
            room = state.headroom(k)
            exponent[i, k] = exponent_of_increments(largest / 2.0 ** gain_bits(factor), factor, state.formats[k], room)
            quanta = _ordered(values, weight).double() * 2.0 ** -float(exponent[i, k])
            state.part(i, state.z[k]).copy_(quanta.round_())
            unset[i, k] = False
    state.scales.state, state.unset = replace(now, exponent=exponent), unset


def _check(label: str, values: Tensor, largest: float, power: int) -> None:
    if not math.isfinite(largest):
        raise ValueError(f"{label}: expected finite numbers, got {largest}")
    if power == 2 and bool((values < 0).any()):
        raise ValueError(f"{label}: expected means of squares, >= 0, got {values.min().item():g}")
