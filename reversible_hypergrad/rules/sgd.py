"""The inner optimizer's hyperparameters: what was given, checked and spread over parameters and steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.problem.setting import Setting, Settings

__all__ = ["SGD", "ResolvedSGD"]

Value = float | Tensor
Given = Value | Mapping[str, Value]

_ELEMENTWISE = ("lr", "weight_decay")


class SGD:
    """SGD with momentum, as ``torch.optim.SGD``, as the inner optimizer of :func:`train`; each setting may be learned.

    Each of ``lr``, ``momentum``, ``dampening``, ``weight_decay`` is

    - a number, or a tensor of shape (): the same for all steps;
    - a tensor of shape (steps,) or (steps, 1): one per step;
    - ``lr`` and ``weight_decay`` only: a tensor of the weight's own shape, or that with a leading 1: one per weight;
    - a dict from parameter name, or a glob such as ``"*.bias"``, to any of these. An exact name comes before globs, and
      ``"*"`` is for all others. Every parameter must be matched, by one glob at most, and every key must match.

    A tensor that requires grad gets its hypergradient, which may flow on to whatever it was computed from. Tensors are
    floating point, of any dtype and device.

    Args:
        lr, weight_decay: >= 0.
        momentum: in [0, 1]. :class:`Reversible` cannot have 0, and uses the fraction
            :func:`reversible_hypergrad.core.approximate_momentum` of it, in the gradient too. A float32 tensor stands for
            the shortest decimal that it prints as.
        dampening: finite; not applied in the first step and where the momentum is 0, as in torch.
        nesterov: as in torch, ``w' = w - lr*(g + mu*v')``. Needs momentum and no dampening; not with :class:`Reversible`.

    Raises:
        TypeError, ValueError: here or when :func:`train` knows names, shapes and steps; they name the setting.

    >>> import torch, reversible_hypergrad as rh
    >>> log_lr = torch.full((100,), -2.0, requires_grad=True)
    >>> rh.SGD(lr=log_lr.exp(), weight_decay={"*.bias": 0.0, "*": 1e-4})
    SGD(lr=tensor of shape (100,), momentum=0.9, dampening=0.0, weight_decay={'*.bias': 0.0, '*': 0.0001})
    """

    def __init__(
        self, lr: Given, momentum: Given = 0.9, dampening: Given = 0.0, weight_decay: Given = 0.0, *, nesterov: bool = False
    ) -> None:
        self.given: dict[str, Given] = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
        }
        for name, given in self.given.items():
            for value in given.values() if isinstance(given, Mapping) else [given]:
                _check_type(name, value)
        if not isinstance(nesterov, bool):
            raise TypeError(f"nesterov: expected True or False, got {nesterov!r}")
        if nesterov and (_is_number(momentum, 0.0) or not _is_number(dampening, 0.0)):
            raise ValueError(
                "nesterov: Nesterov momentum requires a momentum and zero dampening (torch.optim.SGD's rule), got momentum "
                f"{_shown(momentum)} and dampening {_shown(dampening)}. Pass dampening=0.0, or nesterov=False"
            )
        self.nesterov = nesterov

    def __repr__(self) -> str:
        shown = [f"{name}={_shown(given)}" for name, given in self.given.items()]
        return f"SGD({', '.join([*shown, 'nesterov=True'] if self.nesterov else shown)})"

    def resolve(self, names: Sequence[str], weights: Sequence[Tensor], steps: int) -> "ResolvedSGD":
        """The settings of each parameter at each step. Reads the tensors."""
        resolved = ResolvedSGD([], [])
        columns = [_spread(setting, given, names, weights, steps, resolved.tensors) for setting, given in self.given.items()]
        resolved.settings = [Settings(*row) for row in zip(*columns, strict=True)]
        return resolved


@dataclass
class ResolvedSGD:
    settings: list[Settings]  # one per parameter
    tensors: list[Tensor]  # the given tensors that require grad; Setting.source counts them


def _spread(
    setting: str, given: Given, names: Sequence[str], weights: Sequence[Tensor], steps: int, sources: list[Tensor]
) -> list[Setting]:
    made: dict[tuple[Any, ...], Setting] = {}
    column = []
    keys = _keys(setting, given, names) if isinstance(given, Mapping) else [None] * len(names)
    for name, key, weight in zip(names, keys, weights, strict=True):
        label = setting if key is None else f"{setting}[{key!r}]"
        value = given[key] if isinstance(given, Mapping) else given  # type: ignore[index]
        per_weight = isinstance(value, Tensor) and _is_elementwise(setting, label, value, name, weight, steps)
        if isinstance(value, Tensor):
            identity: tuple[Any, ...] = (id(value), name if per_weight else None)
        else:
            identity = ("number", float(value))
        if identity not in made:
            made[identity] = _read(setting, label, value, weight if per_weight else None, sources)
        column.append(made[identity])
    return column


def _keys(setting: str, given: Mapping[str, Value], names: Sequence[str]) -> list[str]:
    """The key of ``given`` that is for each name."""
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


def _is_elementwise(setting: str, label: str, value: Tensor, name: str, weight: Tensor, steps: int) -> bool:
    shape, own = tuple(value.shape), tuple(weight.shape)
    schedule = shape in ((), (steps,), (steps, 1))
    elementwise = setting in _ELEMENTWISE and shape in (own, (1, *own)) and shape != ()
    if schedule and elementwise and value.numel() > 1:
        raise ValueError(
            f"{label}: a tensor of shape {shape} could be one value per step or one per weight of {name!r}. Give it shape "
            f"({steps}, 1) for steps, or {(1, *own)} for weights"
        )
    if not schedule and not elementwise:
        or_own = f", or {own} for a value per weight" if setting in _ELEMENTWISE else ""
        raise ValueError(
            f"{label}: expected a tensor of shape () or ({steps},), one per step{or_own}, for the parameter {name!r}; got shape "
            f"{shape}"
        )
    return elementwise and not schedule


def _read(setting: str, label: str, value: Value, weight: Tensor | None, sources: list[Tensor]) -> Setting:
    source = None
    if isinstance(value, Tensor) and value.requires_grad:
        known = [i for i, tensor in enumerate(sources) if tensor is value]
        if not known:
            sources.append(value)
        source = known[0] if known else len(sources) - 1
    if weight is not None:
        assert isinstance(value, Tensor)
        # A decay per weight joins the gradient in the weight's dtype; a learning rate goes to the kernel as it is.
        dtype = value.dtype if setting == "lr" else weight.dtype
        spread = torch.empty_like(weight, dtype=dtype, requires_grad=False)
        spread.copy_(value.detach().reshape(weight.shape))
        if not bool((torch.isfinite(spread) & (spread >= 0)).all()):
            raise ValueError(f"{label}: expected finite numbers >= 0, got {spread.min().item():g} to {spread.max().item():g}")
        return Setting((), spread.as_strided((weight.numel(),), (1,)), source)
    numbers = _numbers(setting, value) if isinstance(value, Tensor) else [float(value)]
    for number in numbers:
        _check_number(setting, label, number)
    return Setting(numbers, None, source)


def _numbers(setting: str, value: Tensor) -> list[float]:
    flat = value.detach().reshape(-1).cpu()
    if setting == "momentum" and flat.dtype == torch.float32:
        # The shortest decimal: 0.9 given as float32 means 9/10, not 0.89999998.
        return [float(str(x)) for x in flat.numpy()]
    return [float(x) for x in flat.double().numpy()]


def _check_number(setting: str, label: str, number: float) -> None:
    if not math.isfinite(number):
        raise ValueError(f"{label}: expected finite numbers, got {number}")
    if setting == "momentum" and not 0 <= number <= 1:
        raise ValueError(f"{label}: expected numbers in [0, 1], got {number:g}")
    if setting in ("lr", "weight_decay") and number < 0:
        raise ValueError(f"{label}: expected numbers >= 0, got {number:g}. To learn one, pass its logarithm's exp()")


def _is_number(given: Given, number: float) -> bool:
    return not isinstance(given, Mapping | Tensor) and given == number


def _check_type(setting: str, value: object) -> None:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{setting}: expected a floating-point tensor, got {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"{setting}: expected a number, a tensor or a dict of these, got {type(value).__name__}")


def _shown(given: Given) -> str:
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(value)}" for key, value in given.items()) + "}"
    return f"tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(float(given))
