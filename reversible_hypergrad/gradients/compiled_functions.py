"""The two compiled functions of a loss, and where they are found again by later runs."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.gradients.bound import Loss, pure_gradient, pure_products
from reversible_hypergrad.gradients.familiar import code_of

__all__ = ["CompiledFunctions", "compiled_functions"]

Results = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]

_MOST = 32  # losses, models, shapes of batches and options


class CompiledFunctions:
    """:func:`pure_gradient` for one model, loss and shape of the batch, compiled twice, and :func:`pure_products`.

    Attributes:
        alone: compiled without anything for products.
        attached: keeps what products need, and brings a compiled backward.
        along: the products, too, of directions that are known before. Compiled when it is called first.
        found_again: whether an earlier run had them.

    Args:
        arguments: of torch.compile.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.alone: Callable[..., Results] = torch.compile(_fresh(pure_gradient), **arguments)
        self.attached: Callable[..., Results] = torch.compile(_fresh(pure_gradient), **arguments)
        self.along: Callable[..., Any] = torch.compile(_fresh(pure_products), **arguments)
        self.found_again = False


def compiled_functions(loss: Loss, key: Any, arguments: dict[str, Any], renew: bool = False) -> CompiledFunctions:
    """Those of an earlier run, if there was one with an equal ``key`` and the same code of the loss; torch guards the rest.

    Args:
        loss: whose code counts.
        key: model, hyperparameters, batch and arguments, as far as they decide what is compiled.
        arguments: of torch.compile.
        renew: to leave those of an earlier run, which torch has compiled for too many kinds of circumstances.
    """
    code = code_of(loss)
    found = next((kept for kept in _KEPT if kept[0] is code and kept[1] == key), None)
    if found is not None:
        _KEPT.remove(found)
        if not renew:
            _KEPT.append(found)
            found[2].found_again = True
            return found[2]
    functions = CompiledFunctions(arguments)
    _KEPT.append((code, key, functions))
    del _KEPT[:-_MOST]
    return functions


# The last used last. They hold code and kernels, but no model and no data, and torch lets none of them go while they are here:
# hence a number, not weak references.
_KEPT: list[tuple[Any, Any, CompiledFunctions]] = []


def _fresh(function: Any) -> Any:
    """With code of its own: torch keeps what it compiles by code, up to some number, and each of these is for one shape alone."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
