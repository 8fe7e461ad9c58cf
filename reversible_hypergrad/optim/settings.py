"""The settings that a step reads from a parameter group: by name, each with its check, and recorded to be brought back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from reversible_hypergrad.rules.base import LEAST_FACTOR

__all__ = ["Setting", "Settings", "plain", "read", "refuse_forgetting", "refuse_options", "write"]

Settings = dict[str, float]  # what one step read; flags are 0 and 1


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: its key in the group.
        allows: whether a step can be taken with this number.
        expected: what it allows, in words.
        label: how torch's errors call it.
        place: (key, index) in the group, of a setting that is one of several in a tuple there.
    """

    name: str
    allows: Callable[[float], bool]
    expected: str
    label: str = ""
    place: tuple[str, int] | None = None

    def found(self, group: dict[str, Any]) -> Any:
        """What the group has there, unchecked."""
        return group[self.name] if self.place is None else group[self.place[0]][self.place[1]]

    def read(self, group: dict[str, Any]) -> float:
        value = self.found(group)
        label = self.label or f"{self.name} value"
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"Invalid {label}: a tensor of shape {tuple(value.shape)}. Expected one element")
        if not isinstance(value, Real | Tensor):
            raise TypeError(f"Invalid {label}: expected a number, got {value!r} of type {type(value).__name__}")
        number = float(value)
        if not self.allows(number):
            raise ValueError(f"Invalid {label}: {number}. Expected {self.expected}")
        return number


def read(known: Sequence[Setting], group: dict[str, Any]) -> Settings:
    """The group's present settings.

    Raises:
        TypeError: if one is no number.
        ValueError: in torch's wording, if one makes no sense.
    """
    return {setting.name: setting.read(group) for setting in known}


def write(known: Sequence[Setting], settings: Settings, group: dict[str, Any]) -> None:
    """Puts the group back to ``settings``; a tensor keeps being that tensor, a flag a flag, a tuple a tuple."""
    for setting in known:
        number = settings[setting.name]
        if setting.place is None:
            group[setting.name] = _written(group[setting.name], number)
        else:
            key, index = setting.place
            values = list(group[key])
            values[index] = _written(values[index], number)
            group[key] = type(group[key])(values)


def _written(old: Any, number: float) -> Any:
    if isinstance(old, Tensor):
        return old.fill_(number)
    return bool(number) if isinstance(old, bool) else number


def plain(value: Any) -> Any:
    """Of a setting, right or wrong, what is the same after it was saved and loaded."""
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() != 1 else float(value)
    return float(value) if isinstance(value, Real) else repr(value)


def refuse_options(group: dict[str, Any]) -> None:
    """Options of torch's optimizers that no reversible one can honour are refused, never ignored."""
    if group.get("capturable"):
        raise ValueError(
            "capturable=True is not supported: each reversible step has numbers of its own, which a CUDA graph would repeat. "
            "Capture the loss and its backward, call step() after each replay, and use capturable=False"
        )
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True is not supported: the integers of a reversible step have no autograd graph. Hypergradients come "
            "from undoing the steps, not from a graph through them; use differentiable=False"
        )
    if group.get("foreach") and group.get("fused"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def refuse_forgetting(settings: Settings, left: float) -> None:
    """Raises ValueError if a step leaves so small a part of the weights that it cannot be undone."""
    if not left >= LEAST_FACTOR:
        raise ValueError(
            f"Invalid weight_decay value: {settings['weight_decay']} with the learning rate {settings['lr']}. Expected lr * "
            "weight_decay below 1: a step that forgets the weights cannot be undone"
        )
