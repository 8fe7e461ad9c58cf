"""What an optimizer is: one declaration, from which training, its adjoints and its reversal follow."""

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from inspect import Parameter, Signature, signature
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.problem.setting import Setting, Settings
from reversible_hypergrad.rules.settings import Given, Resolved, SettingSpec, check_given, shown, spread

__all__ = ["LEAST_FACTOR", "Rule", "SettingSpec"]

LEAST_FACTOR = 2.0**-16  # what a state may decay by in one step and still be undone


class _AnyStep:
    """In place of a step, for functions that do not look at it: whatever they would do with it is a TypeError."""

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __bool__(self) -> bool:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


class Rule(ABC):
    """An optimizer, as three formulas. Subclass it to write one; an instance is what :func:`train` takes as ``optimizer``.

    A step with the gradient g changes each state, in order, and then the weights::

        z = decay * z + increment(g, w, z)          earlier states new, later ones decayed but old
        w = decay["weight"] * w - update(z)         all states new

    That the update looks at new states alone is what lets a step be undone: from the states after it follow the weights before
    it, from these the gradient, and from that the states. A rule whose update needs the gradient keeps it as a state that decays
    by 0; such a step can be trained and differentiated, but not undone. If signs are all that it needs, :meth:`signs` keeps them.

    Attributes:
        states: name -> power of the gradient's scale: 1 like g, 2 like g*g, 0 of order 1. All begin at 0. A state of power 2 is
            a mean of squares: never negative, and kept in 64 bits in every layout, since squares span twice the range.
        headroom: name -> bits left above a state's first increments, for gradients that grow; the fewer, the finer its quanta,
            and the more often it must be shifted. Left out: 2 for power 2, else 4 in 32-bit integers, 10 in 64-bit ones.
        settings: name -> :class:`SettingSpec`. They become keyword arguments, each a number, a tensor or a dict of these, per
            step or per weight, learned or not: see :class:`SGD`.
        elementwise: whether every number depends on its own weight alone, so that the functions may be applied to several
            tensors laid end to end, and to zeros between them. If False, they get one tensor at a time, in the weight's shape.
        linear: a promise that makes steps faster: the rule is elementwise, its increments and its update are linear in g, w and
            z, and no function looks at t. It is checked.
        program: the name of the compiled program for fixed-point steps; empty: there is none.
        sums_before: what the program's adjoint gives derivatives by before the gradient is there, in its order: a number, by its
            index, or the decay of a state or of "weight"; each with the factor that the program leaves out.
        sums_after: the same when the gradient is there.

    The functions are called with

    - ``h``: one attribute per setting, a float or a tensor: use operators and torch functions, not ``math``;
    - ``t``: the step, from 0;
    - ``g``, ``w``: gradient and old weights;
    - ``z``: name -> state.

    They must be differentiable by torch: use :func:`reversible_hypergrad.rules.root` in place of ``sqrt`` where a state may be 0.

    Cost: with plain floats one pass over memory per operation written; a linear rule as a hand-written one.

    Raises:
        TypeError: for settings that the rule does not declare, or that are missing, or of a wrong type.

    >>> import torch, reversible_hypergrad as rh
    >>> from reversible_hypergrad.rules import SettingSpec, root
    >>> class RMSprop(rh.Rule):
    ...     states = {"s": 2, "b": 0}
    ...     settings = {
    ...         "lr": SettingSpec(0.01, per_weight=True),
    ...         "alpha": SettingSpec(0.99, high=1.0),
    ...         "momentum": SettingSpec(0.9, high=1.0),
    ...         "eps": SettingSpec(1e-8),
    ...     }
    ...     elementwise = True
    ...     def decay(self, h, t):
    ...         return {"s": h.alpha, "b": h.momentum}
    ...     def increments(self, h, t, g, w, z):
    ...         yield "s", (1 - h.alpha) * g * g
    ...         yield "b", g / (root(z["s"]) + h.eps)
    ...     def update(self, h, t, z, logged):
    ...         return h.lr * z["b"]
    >>> RMSprop(lr=1e-3)
    RMSprop(lr=0.001, alpha=0.99, momentum=0.9, eps=1e-08)
    """

    states: ClassVar[Mapping[str, int]]
    headroom: ClassVar[Mapping[str, int]] = {}
    settings: ClassVar[Mapping[str, SettingSpec]]
    elementwise: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    program: ClassVar[str] = ""
    sums_before: ClassVar[Sequence[tuple[int | str, float]]] = ()
    sums_after: ClassVar[Sequence[tuple[int | str, float]]] = ()

    # What a rule is

    @abstractmethod
    def decay(self, h: Any, t: Any) -> Mapping[str, Any]:
        """State, or "weight" -> the factor in [0, 1] that it shrinks by: a number, one for all weights. Left out: 1."""

    @abstractmethod
    def increments(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields (state, what is added to it), in the order of ``states``. ``z`` is always the present one."""

    @abstractmethod
    def update(self, h: Any, t: int, z: Mapping[str, Tensor], logged: Any) -> Tensor:
        """What is subtracted from the weights, from new states and what was ``logged``, or the ``signs``."""

    def logged(self, h: Any, t: int, w: Tensor, z: Mapping[str, Tensor]) -> Any:
        """Numbers per tensor and step that look at the old weights, such as a norm of theirs: they are kept. None: there are
        none."""
        return None

    def signs(self, h: Any, t: int, g: Tensor, w: Tensor, z: Mapping[str, Tensor]) -> Tensor:
        """Numbers -1, 0 and 1 per weight that look at the gradient and at decayed old states. They are kept, a bit each, and a
        second one in steps where a tensor has zeros, and ``update`` gets them as ``logged``. Their derivative is 0."""
        raise NotImplementedError(f"{type(self).__name__} keeps no signs")

    @property
    def keeps_signs(self) -> bool:
        """Whether the rule has ``signs``."""
        return type(self).signs is not Rule.signs

    def below_eps(self, h: Any, t: int, z: Mapping[str, Tensor]) -> Tensor | None:
        """Where an update is divided by a root of states plus an eps, the weights whose root is below it; None: there is none."""
        return None

    def numbers(self, h: Any, t: Any) -> tuple[Any, ...]:
        """What the compiled ``program`` takes from the settings, in its order. Of a rule with a program this and ``decay`` are
        also called with float64 tensors for settings and ``t``, for their derivatives."""
        raise NotImplementedError(f"{type(self).__name__} declares no numbers for its program {self.program!r}")

    def direction_is_state(self, h: Any) -> bool:
        """Whether the program's direction is the cotangent of the first state as it is, so that it need not be written."""
        return False

    def irreversible(self, settings: Sequence[Settings]) -> str | None:
        """Why a run with these settings, one mapping per parameter, cannot be undone; None if it can."""
        for of_one in {tuple(of_one.values()): of_one for of_one in settings}.values():
            if any(setting.elementwise is None and not len(setting.numbers) for setting in of_one.values()):
                continue  # a schedule of no steps
            longest = max(of_one.values(), key=lambda setting: len(setting.numbers))
            steps = range(longest.first, longest.first + max(len(longest.numbers), 1))
            for name, factors in self.factors(of_one, steps).items():
                outside = factors[~((factors >= LEAST_FACTOR) & (factors <= 1))]
                if outside.size:
                    return (
                        f"optimizer: rh.Reversible() expected {type(self).__name__} to decay {name!r} by a factor from 2^-16 to "
                        f"1, got {outside[0]:g}: a step that forgets a state cannot be undone from a few bits. Use "
                        "adjoint=rh.Checkpoint()"
                    )
        return None

    # What follows from it

    def by_name(self, names: Sequence[str]) -> "list[Rule]":
        """The rule of each parameter: this one, unless it is made of several."""
        return [self] * len(names)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.signs is not Rule.signs and cls.logged is not Rule.logged:
            raise TypeError(f"{cls.__name__}: expected signs() or logged(), got both, but update() is given one of them")
        if cls.__init__ is Rule.__init__ and hasattr(cls, "settings"):
            # Those without a default first, as Python wants them.
            ordered = sorted(cls.settings.items(), key=lambda item: item[1].default is not None)
            defaults = {name: Parameter.empty if spec.default is None else spec.default for name, spec in ordered}
            cls.__signature__ = Signature(  # type: ignore[attr-defined]
                [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default) for name, default in defaults.items()]
            )

    def __init__(self, *positional: Given, **named: Given) -> None:
        self.given: dict[str, Given] = named
        if type(self).__init__ is Rule.__init__:
            try:
                bound = signature(type(self)).bind(*positional, **named)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}: {error}; its settings are {', '.join(self.settings)}") from None
            bound.apply_defaults()
            self.given = {name: bound.arguments[name] for name in self.settings}
        for name, value in self.given.items():
            check_given(name, value)

    def tensors(self) -> list[Tensor]:
        """Those among its settings, as they were given."""
        values = [v for given in self.given.values() for v in (given.values() if isinstance(given, Mapping) else [given])]
        return [value for value in values if isinstance(value, Tensor)]

    def cut(self, count: int, part: slice) -> "Rule":
        """The same rule for a part of a run: of tensors with a value for each of ``count`` steps, those of ``part``."""

        def cut(value: Any) -> Any:
            is_schedule = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == value.numel() == count
            return value.reshape(-1, 1)[part] if is_schedule else value  # so that it is not taken for one per weight

        other = copy(self)
        other.given = {
            name: {key: cut(value) for key, value in given.items()} if isinstance(given, Mapping) else cut(given)
            for name, given in self.given.items()
        }
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={shown(given)}' for name, given in self.given.items())})"

    def resolve(self, names: Sequence[str], weights: Sequence[Tensor], steps: range) -> Resolved:
        """The settings of each parameter at each step. Reads the tensors.

        Raises:
            ValueError: for shapes, keys and numbers that make no sense. It names the setting.
        """
        return spread(self.settings, self.given, names, weights, steps)

    def factors(self, settings: Settings, steps: range) -> dict[str, NDArray[np.float64]]:
        """What each state, and "weight", decays by: one number for all steps, or one per step."""
        constant = all(len(setting.numbers) < 2 for setting in settings.values()) and not self._decays_by_step(settings, steps)
        # All steps but the first, where a setting may be set aside, are then alike.
        found = self._factors(settings, steps[:2] if constant else steps)
        if constant:
            found = {
                name: own[-1:] if len(own) < 2 or own[0] == own[1] else np.append(own[:1], np.full(len(steps) - 1, own[1]))
                for name, own in found.items()
            }
        return found

    def _decays_by_step(self, settings: Settings, steps: range) -> bool:
        """Whether ``decay`` looks at the step."""
        if self.linear or not steps:
            return False
        try:
            self.decay(self.at(settings, steps[-1]), _AnyStep())
        except Exception:  # a fault of its own comes again, with a step
            return True
        return False

    def _factors(self, settings: Settings, steps: range) -> dict[str, NDArray[np.float64]]:
        if self.linear:
            columns = self.decay(self.columns(settings, steps), 0)
            return {n: torch.as_tensor(own, dtype=torch.float64).expand(len(steps)).numpy() for n, own in columns.items()}
        if self.program:
            return self._mapped_factors(settings, steps)
        found: dict[str, array[float]] = {}
        for t in steps:
            for name, factor in self.decay(self.at(settings, t), t).items():
                found.setdefault(name, array("d")).append(float(factor))
        return {name: np.array(own) for name, own in found.items()}

    def _mapped_factors(self, settings: Settings, steps: range) -> dict[str, NDArray[np.float64]]:
        """``decay`` of all steps at once, which sees numbers without dimensions, as of one step."""
        h = vars(self.columns(settings, steps))
        per_weight = {name: math.nan for name, setting in settings.items() if setting.elementwise is not None}
        numbers = {name: column for name, column in h.items() if name not in per_weight}

        def one(own: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
            found = self.decay(SimpleNamespace(**own, **per_weight), t)
            return {name: torch.as_tensor(factor, dtype=torch.float64) for name, factor in found.items()}

        found = torch.func.vmap(one)(numbers, torch.arange(steps.start, steps.stop, dtype=torch.float64))
        return {name: factors.numpy() for name, factors in found.items()}

    def columns(self, settings: Settings, steps: range) -> SimpleNamespace:
        """``h`` of one parameter: a float64 tensor of shape (steps,) per setting, NaN where it has one number per weight."""
        h = SimpleNamespace()
        for name, spec in self.settings.items():
            rows = np.array(settings[name].between(steps) or [math.nan], np.float64)
            numbers = torch.from_numpy(rows).expand(len(steps))
            aside = torch.from_numpy(spec.set_aside_at(settings, steps))
            setattr(h, name, numbers if spec.first is None else torch.where(aside, spec.first, numbers))
        return h

    def at(self, settings: Settings, t: int, read: Callable[[str, Setting], Any] | None = None) -> SimpleNamespace:
        """``h`` of one parameter at step ``t``.

        Args:
            read: what stands for a setting that is not set aside in this step; None: its number, NaN for one per weight.
        """
        h = SimpleNamespace()
        for name, spec in self.settings.items():
            setting = settings[name]
            if spec.set_aside(settings, t):
                value: Any = spec.first
            elif read is not None:
                value = read(name, setting)
            else:
                value = setting.at(t) if setting.elementwise is None else math.nan
            setattr(h, name, value)
        return h
