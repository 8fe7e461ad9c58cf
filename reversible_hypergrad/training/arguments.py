"""What train() is given, checked and in order."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from reversible_hypergrad.adjoints import Adjoint
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.gradients.compile_options import check_compile
from reversible_hypergrad.rules.base import Rule

__all__ = ["check_options", "initial_weights", "those_wanted"]


def check_options(optimizer: Any, adjoint: Any, budget: Any, seed: Any, cuda_graph: Any, compile: Any) -> None:
    """Raises TypeError or ValueError for the first that cannot be honoured, by name."""
    if not isinstance(optimizer, Rule):
        raise TypeError(f"optimizer: expected rh.SGD(...) or another rh.Rule, got {type(optimizer).__name__}")
    if adjoint is not None and not isinstance(adjoint, Adjoint) and adjoint != "auto":
        raise TypeError(f"adjoint: expected an object such as rh.Reversible(), or 'auto', got {adjoint!r}")
    if budget is not None and adjoint != "auto":
        raise ValueError(f"budget: expected none unless adjoint='auto', got {budget!r} with adjoint={adjoint!r}")
    check_integer("seed", seed)
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph: expected True or False, got {cuda_graph!r}")
    check_compile(compile)


def initial_weights(model: nn.Module, initial: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Name -> initial weight, attached to its graph, for every trained parameter.

    Raises:
        TypeError: for something in ``initial`` that is no tensor.
        ValueError: for a parameter that is not initialized, none to train, and what does not fit in ``initial``.
    """
    starts: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"model: the parameter {name!r} is not initialized. Run the model once on a batch")
        if parameter.requires_grad:
            starts[name] = parameter
    if not starts:
        raise ValueError("model: expected parameters that require grad, got none to train")
    for name, value in (initial or {}).items():
        if name not in starts:
            raise ValueError(f"initial: {name!r} is not a trained parameter of the model; they are {', '.join(starts)}")
        expected = starts[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"initial[{name!r}]: expected a tensor, got {type(value).__name__}")
        if value.shape != expected.shape or value.dtype != expected.dtype or value.device != expected.device:
            raise ValueError(
                f"initial[{name!r}]: expected shape {tuple(expected.shape)}, {expected.dtype} on {expected.device}, got "
                f"{tuple(value.shape)}, {value.dtype} on {value.device}"
            )
        starts[name] = value
    return starts


def those_wanted(leaves: Sequence[Any]) -> list[Tensor]:
    """The hyperparameters that require grad."""
    for leaf in leaves:
        if isinstance(leaf, nn.Module):
            raise TypeError(
                f"hyperparameters: expected a nest of tensors, got the module {type(leaf).__name__}. Pass "
                "dict(module.named_parameters()), and torch.func.functional_call(module, ...) in the loss"
            )
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
