"""Where a run begins, from what train() is given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.rules.base import Rule

__all__ = ["check_start", "first_states", "initial_weights", "load_buffers"]


def check_start(start: Any, initial: Any) -> Start:
    """``start``, or that of a new run.

    Raises:
        TypeError: for something else than a :class:`Start`.
        ValueError: for weights in both, and a negative step.
    """
    if start is None:
        return Start()
    if not isinstance(start, Start):
        raise TypeError(f"start: expected trained.state of another run, or an rh.Start, got {type(start).__name__}")
    check_integer("start: step", start.step, least=0)
    if initial and start.weights:
        raise ValueError("initial: expected none beside start=, whose weights are the initial ones; got both. Leave one out")
    return start


def initial_weights(model: nn.Module, given: Mapping[str, Tensor], argument: str) -> dict[str, Tensor]:
    """Name -> initial weight, attached to its graph, for every trained parameter.

    Args:
        model: the user's.
        given: weights in place of its own.
        argument: where they were given.

    Raises:
        TypeError: for something in ``given`` that is no tensor.
        ValueError: for a parameter that is not initialized, none to train, and what does not fit in ``given``.
    """
    starts: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"model: the parameter {name!r} is not initialized. Run the model once on a batch")
        if parameter.requires_grad:
            starts[name] = parameter
    if not starts:
        raise ValueError("model: expected parameters that require grad, got none to train")
    for name, value in given.items():
        if name not in starts:
            raise ValueError(f"{argument}: {name!r} is not a trained parameter of the model; they are {', '.join(starts)}")
        _check_tensor(f"{argument}[{name!r}]", value, starts[name], starts[name].dtype)
        starts[name] = value
    return starts


def first_states(start: Start, names: Sequence[str], weights: Sequence[Tensor], rules: Sequence[Rule]) -> list[dict[str, Tensor]]:
    """The states of ``start``, attached, per weight.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for a weight, a state or a shape that the run does not have.
    """
    for name in start.states:
        if name not in names:
            raise ValueError(f"start: states: {name!r} is not a trained parameter of the model; they are {', '.join(names)}")
    found = []
    for name, weight, rule in zip(names, weights, rules, strict=True):
        own = dict(start.states.get(name, {}))
        for state, values in own.items():
            label = f"start: states[{name!r}][{state!r}]"
            if state not in rule.states:
                raise ValueError(
                    f"{label}: expected states of {type(rule).__name__}, {', '.join(rule.states) or 'which has none'}. Continue "
                    "with the optimizer that made them, or leave them out: start=rh.Start(weights=...)"
                )
            _check_tensor(label, values, weight, None)
        found.append(own)
    return found


def load_buffers(model: nn.Module, start: Start) -> None:
    """Raises ValueError for one that the model does not have."""
    own = dict(model.named_buffers())
    for name, buffer in start.buffers.items():
        if name not in own or own[name].shape != buffer.shape:
            raise ValueError(
                f"start: buffers[{name!r}]: expected a buffer of the model, with its shape; they are "
                f"{', '.join(f'{n} {tuple(b.shape)}' for n, b in own.items()) or 'none'}"
            )
        with torch.no_grad():
            own[name].copy_(buffer)


def _check_tensor(label: str, value: Any, like: Tensor, dtype: torch.dtype | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{label}: expected a tensor, got {type(value).__name__}")
    if (
        value.shape != like.shape
        or value.device != like.device
        or (value.dtype != dtype if dtype else not value.is_floating_point())
    ):
        raise ValueError(
            f"{label}: expected shape {tuple(like.shape)}, {dtype or 'floating point'} on {like.device}, got "
            f"{tuple(value.shape)}, {value.dtype} on {value.device}"
        )
