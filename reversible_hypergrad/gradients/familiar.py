"""Losses and models that have been seen before, though the objects are new."""

from types import CodeType
from typing import Any

from torch import nn

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.batch_kinds import kinds_of
from reversible_hypergrad.gradients.bound import Loss

__all__ = ["Familiar", "code_of"]

Given = tuple[nn.Module, Loss, Any]  # model, loss, hyperparameters


class Familiar:
    """A set that compares by code, structure and shapes, as of outer loops that make model and loss anew at each pass.

    It holds no model and no data.

    Args:
        most: how many are remembered; the oldest one goes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: list[Any] = []

    def __contains__(self, given: Given) -> bool:
        return _key(*given) in self._keys

    def add(self, given: Given) -> None:
        self._keys.append(_key(*given))
        del self._keys[: -self._most]


def code_of(function: Any) -> Any:
    """What is the same when a function comes again: a lambda is made anew by each pass of a loop, of the same code."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code if isinstance(code, CodeType) else type(function)


def _key(model: nn.Module, loss: Loss, hyperparameters: Any) -> Any:
    leaves, structure = pytree.flatten(hyperparameters)
    return _function(loss), _model(model), kinds_of(leaves), structure


def _function(function: Any) -> Any:
    """Its code, and what it has closed over, as far as that is code, too."""
    function = getattr(function, "__func__", function)
    closed = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            closed.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    return code_of(function), [_content(x) for x in (*closed, *(getattr(function, "__defaults__", None) or ()))]


def _content(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _model(value)
    if getattr(value, "__closure__", None):
        return code_of(value)  # and no further: it may be recursive
    return code_of(value) if callable(value) else type(value).__qualname__


def _model(model: nn.Module) -> Any:
    modules = []
    for name, module in model.named_modules():
        own = [(key, code_of(value)) for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        kind = type(module)  # a parametrized module has a class of its own
        modules.append((name, kind.__module__, kind.__qualname__, module.training, module.extra_repr(), own))
    return modules, kinds_of([*model.parameters(), *model.buffers()])
