"""Settings as a user gives them, checked and spread over parameters and steps by what a rule declares of them."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Setting, Settings

__all__ = ["Given", "Resolved", "SettingSpec", "check_given", "keys_of", "pair", "shown", "spread"]

_TEXTS = 1 << 16  # numbers that are written as text at a time, 128 bytes each

Value = float | Tensor
Given = Value | Mapping[str, Value]


@dataclass(frozen=True)
class SettingSpec:
    """What a rule declares of one of its settings.

    Attributes:
        default: if none is given; None: one must be given.
        low: the least that makes sense.
        high: the most that does.
        below: whether ``high`` itself does not.
        per_weight: whether a tensor of the weight's own shape is allowed, one value per weight.
        first: what the setting is in the first step whatever was given, such as no dampening; None: what was given.
        needs: a setting where 0 sets this one aside in any step: then it is ``first``, too. Empty: none.

    >>> SettingSpec(0.9, high=1.0).domain
    'in [0, 1]'
    """

    default: float | None = None
    low: float = 0.0
    high: float = math.inf
    below: bool = False
    per_weight: bool = False
    first: float | None = None
    needs: str = ""

    @property
    def domain(self) -> str:
        """The numbers that make sense, in words; empty if all do."""
        if math.isfinite(self.high):
            return f"in [{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        return f">= {self.low:g}" if math.isfinite(self.low) else ""

    def allows(self, numbers: Any) -> Any:
        """Whether each number makes sense."""
        return (numbers >= self.low) & ((numbers < self.high) if self.below else (numbers <= self.high))

    def set_aside(self, settings: Settings, step: int) -> bool:
        """Whether the setting is ``first`` in ``step``, so that it has no derivative there."""
        if self.first is None:
            return False
        return step == 0 or (bool(self.needs) and settings[self.needs].elementwise is None and settings[self.needs].at(step) == 0)

    def set_aside_at(self, settings: Settings, steps: range) -> np.ndarray:
        """The same for all ``steps`` at once."""
        aside = np.zeros(len(steps), bool)
        if self.first is not None:
            aside[: 1 if steps.start == 0 else 0] = True
            if self.needs and settings[self.needs].elementwise is None:
                aside |= np.asarray(settings[self.needs].between(steps)) == 0
        return aside


@dataclass
class Resolved:
    """What was given, of each parameter at each step."""

    settings: list[Settings]  # one per parameter
    tensors: list[Tensor]  # the given tensors that require grad; Setting.source counts them


def spread(
    specs: Mapping[str, SettingSpec], given: Mapping[str, Given], names: Sequence[str], weights: Sequence[Tensor], steps: range
) -> Resolved:
    """The settings of each parameter at each step. Reads the tensors.

    A tensor with a value per step has those of ``steps``, or, in a run that continues another, of all steps from 0 on.

    Raises:
        ValueError: for shapes, keys and numbers that make no sense. It names the setting.
    """
    tensors: list[Tensor] = []
    columns = {name: _spread(name, spec, given[name], names, weights, steps, tensors) for name, spec in specs.items()}
    return Resolved([{name: column[i] for name, column in columns.items()} for i in range(len(names))], tensors)


def check_given(setting: str, given: Given) -> None:
    """Raises TypeError for what is neither a number nor a floating-point tensor nor a dict of these."""
    for value in given.values() if isinstance(given, Mapping) else [given]:
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                raise TypeError(f"{setting}: expected a floating-point tensor, got {value.dtype}")
        elif isinstance(value, bool) or not isinstance(value, int | float | np.floating):
            raise TypeError(f"{setting}: expected a number, a tensor or a dict of these, got {type(value).__name__}")


def pair(name: str, given: Sequence[Given]) -> tuple[Given, Given]:
    """Raises TypeError for what is not two settings, such as betas."""
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(f"{name}: expected two numbers or tensors, such as (0.9, 0.99), got {given!r}")
    return given[0], given[1]


def shown(given: Given) -> str:
    """As text for a repr."""
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{key!r}: {shown(value)}" for key, value in given.items()) + "}"
    return f"tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(float(given))


def _spread(
    setting: str,
    spec: SettingSpec,
    given: Given,
    names: Sequence[str],
    weights: Sequence[Tensor],
    steps: range,
    sources: list[Tensor],
) -> list[Setting]:
    made: dict[tuple[Any, ...], Setting] = {}
    column = []
    keys = keys_of(setting, given, names) if isinstance(given, Mapping) else [None] * len(names)
    for name, key, weight in zip(names, keys, weights, strict=True):
        label = setting if key is None else f"{setting}[{key!r}]"
        value = given[key] if isinstance(given, Mapping) else given  # type: ignore[index]
        per_weight = isinstance(value, Tensor) and _is_elementwise(spec, label, value, name, weight, steps)
        if isinstance(value, Tensor):
            identity: tuple[Any, ...] = (id(value), name if per_weight else None)
        else:
            identity = ("number", float(value))
        if identity not in made:
            made[identity] = _read(spec, label, value, weight if per_weight else None, steps, sources)
        column.append(made[identity])
    return column


def keys_of(setting: str, given: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The key of ``given`` that is for each name.

    Raises:
        ValueError: for a name that is matched by no key or by two globs, and a key that matches none. It names ``setting``.
    """
    keys = []
    for name in names:
        if name in given:
            keys.append(name)
            continue
        matches = [key for key in given if key != "*" and fnmatchcase(name, key)]
        if len(matches) > 1:
            raise ValueError(
                f"{setting}: the parameter {name!r} is matched by {' and '.join(map(repr, matches))}. Give it a key of its own"
            )
        if not matches and "*" not in given:
            raise ValueError(
                f"{setting}: no key matches the parameter {name!r}, got keys {list(given)}. Add it, or '*' for all others"
            )
        keys.append(matches[0] if matches else "*")
    for key in given:
        if key != "*" and not any(fnmatchcase(name, key) or name == key for name in names):
            raise ValueError(f"{setting}: the key {key!r} matches no trained parameter; they are {', '.join(names)}")
    return keys


def _is_elementwise(spec: SettingSpec, label: str, value: Tensor, name: str, weight: Tensor, steps: range) -> bool:
    shape, own = tuple(value.shape), tuple(weight.shape)
    counts = dict.fromkeys((len(steps), steps.stop))
    schedule = shape == () or (shape[1:] in ((), (1,)) and shape[0] in counts)
    elementwise = spec.per_weight and shape in (own, (1, *own)) and shape != ()
    if schedule and elementwise and value.numel() > 1:
        raise ValueError(
            f"{label}: a tensor of shape {shape} could be one value per step or one per weight of {name!r}. Give it shape "
            f"({shape[0]}, 1) for steps, or {(1, *own)} for weights"
        )
    if not schedule and not elementwise:
        or_own = f", or {own} for a value per weight" if spec.per_weight else ""
        per_step = " or ".join(f"({count},)" for count in counts)
        continued = f" (from step 0 on: the run begins at step {steps.start})" if len(counts) > 1 else ""
        raise ValueError(
            f"{label}: expected a tensor of shape () or {per_step}, one per step{continued}{or_own}, for the parameter {name!r}; "
            f"got shape {shape}"
        )
    return elementwise and not schedule


def _read(spec: SettingSpec, label: str, value: Value, weight: Tensor | None, steps: range, sources: list[Tensor]) -> Setting:
    source = None
    if isinstance(value, Tensor) and value.requires_grad:
        known = [i for i, tensor in enumerate(sources) if tensor is value]
        if not known:
            sources.append(value)
        source = known[0] if known else len(sources) - 1
    if weight is not None:
        assert isinstance(value, Tensor)
        own = torch.empty_like(weight, dtype=value.dtype, requires_grad=False)
        own.copy_(value.detach().reshape(weight.shape))
        if not bool((torch.isfinite(own) & spec.allows(own)).all()):
            expected = f"finite numbers {spec.domain}".rstrip()
            raise ValueError(f"{label}: expected {expected}, got {own.min().item():g} to {own.max().item():g}")
        return Setting(array("d"), own.as_strided((weight.numel(),), (1,)), source)
    numbers = _numbers(value) if isinstance(value, Tensor) else array("d", [float(value)])
    _check_numbers(spec, label, np.asarray(numbers))
    if not isinstance(value, Tensor) or value.dim() == 0:
        return Setting(numbers, None, source)
    place = steps.start if len(numbers) > len(steps) else 0
    return Setting(numbers[place : place + len(steps)], None, source, steps.start, place)


def _numbers(value: Tensor) -> "array[float]":
    flat = value.detach().reshape(-1).cpu()
    numbers = array("d")
    for part in torch.split(flat, _TEXTS):
        # The shortest decimal: 0.9 given as float32 means 9/10, not 0.89999998.
        own = part.numpy().astype(str).astype(np.float64) if flat.dtype == torch.float32 else part.double().numpy()
        numbers.frombytes(own.tobytes())
    return numbers


def _check_numbers(spec: SettingSpec, label: str, numbers: np.ndarray) -> None:
    wrong = numbers[~(np.isfinite(numbers) & spec.allows(numbers))]
    if not wrong.size:
        return
    number = float(wrong[0])
    if not math.isfinite(number):
        raise ValueError(f"{label}: expected finite numbers, got {number}")
    if not spec.allows(number):
        remedy = ". To learn one, pass its logarithm's exp()" if spec.low == 0 and spec.high == math.inf else ""
        raise ValueError(f"{label}: expected numbers {spec.domain}, got {number:g}{remedy}")
