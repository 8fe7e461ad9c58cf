"""What train(compile=) may be, and what torch.compile is given for it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["check_compile", "compile_arguments", "refuse_compiled"]

_KNOWN = ("backend", "mode", "options", "dynamic")


def check_compile(given: Any) -> None:
    """Raises TypeError or ValueError for what is neither a bool nor a dict of arguments of torch.compile."""
    if isinstance(given, bool):
        return
    if not isinstance(given, Mapping):
        raise TypeError(
            "compile: expected True, False, or a dict of torch.compile's arguments such as {'backend': 'aot_eager'}, got "
            f"{given!r}"
        )
    for name in given:
        if name not in _KNOWN:
            remedy = "a loss is always compiled as one whole, so leave it out" if name == "fullgraph" else "leave it out"
            raise ValueError(f"compile: expected only {', '.join(_KNOWN)} of torch.compile's arguments, got {name!r}: {remedy}")


def compile_arguments(given: bool | Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of torch.compile, whose inductor is told to draw torch's own random numbers.

    Sizes are constants unless ``given`` says otherwise: a kernel for any size may give other bits than one for this size.

    Args:
        given: to train(), checked by :func:`check_compile`.

    Raises:
        ValueError: for what torch refuses at once, such as an unknown backend or option.
    """
    arguments = {"backend": "inductor", "dynamic": False, **(given if isinstance(given, Mapping) else {}), "fullgraph": True}
    try:
        if arguments["backend"] == "inductor":
            from torch._inductor import list_mode_options  # takes seconds

            mode, own = arguments.pop("mode", None), arguments.get("options") or {}
            from_mode = list_mode_options(mode) if mode else {}
            # As eager ones do, dropout and the like then draw from the generators that a step seeds.
            arguments["options"] = {"fallback_random": True, **from_mode, **own}
        torch.compile(_nothing, **arguments)
    except Exception as error:
        said = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f"compile: expected arguments that torch.compile takes, got {given!r}. Torch says: {said}") from error
    return arguments


def refuse_compiled(model: nn.Module, loss: Any) -> None:
    """Raises TypeError for what torch.compile has made: its second derivatives are an error, but only after all of training."""
    for name, module in model.named_modules():
        if any(kind.__name__ == "OptimizedModule" for kind in type(module).__mro__):  # by name: its import takes seconds
            place = f"model.{name}" if name else "model"
            raise TypeError(
                f"{place}: got a module compiled by torch.compile, which has no second derivatives. Pass what it wraps, "
                f"{place}._orig_mod, and rh.train(..., compile=True), which compiles the gradient and its products"
            )
    if hasattr(loss, "_torchdynamo_orig_callable") and not getattr(loss, "_torchdynamo_disable", False):
        raise TypeError(
            "loss: got a function compiled by torch.compile, which has no second derivatives. Pass the plain function, and "
            "rh.train(..., compile=True), which compiles the gradient and its products"
        )


def _nothing() -> None:
    pass
