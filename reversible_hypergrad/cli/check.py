"""Tells whether a loss replays bit for bit and can be differentiated twice, as exact reversal needs, and which layer spoils
it."""

import argparse
import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.cli.errors import UsageError, first_line
from reversible_hypergrad.cli.output import show

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """The command: 0 if all is well, 1 if something was found."""
    model, loss, batch, hyperparameters = _problem(options.target)
    try:
        result = rh.check_replayable(model, loss, batch, hyperparameters, seed=options.seed)
    except Exception as error:
        raise UsageError(f"{options.target}: {first_line(error)}") from error
    if options.json:
        show(json.dumps({"replayable": bool(result), **asdict(result)}, indent=1))
    else:
        words = {
            "same loss twice": result.same_loss,
            "same gradients twice": result.same_gradients,
            "second derivatives": result.second_derivatives,
        }
        show("\n".join([*(f"{what:25}{_word(good)}" for what, good in words.items()), str(result)]))
    return 0 if result else 1


def _word(good: bool) -> str:
    return "yes" if good else "NO"


def _problem(target: str) -> tuple[nn.Module, Any, Any, Any]:
    """What the named function returns.

    Raises:
        UsageError: for a module or function that does not exist, fails, or returns something else.
    """
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"expected MODULE:FUNCTION, such as my_package.training:problem, got {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(f"{module_name} cannot be imported: {first_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"{module_name} has no function {function_name!r}")
    try:
        given = function()
    except Exception as error:
        raise UsageError(f"{target} failed: {first_line(error)}") from error
    if not isinstance(given, tuple) or len(given) != 4:
        what = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise UsageError(f"{target}: expected it to return (model, loss, batch, hyperparameters), got {what}")
    return given
