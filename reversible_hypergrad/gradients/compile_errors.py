"""What torch.compile refuses, in the words of train()."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._C._autograd import _saved_tensors_hooks_enable, _saved_tensors_hooks_get_disabled_error_message

from reversible_hypergrad.gradients.bound import Bound

__all__ = ["explained", "is_of_too_many_kinds"]

_REMEDY = (
    "rh.train(compile=True) needs loss and model as one graph: without .item(), branches on a tensor's value, print, NumPy, "
    "derivatives by torch.autograd.grad or operations unknown to the compiler. Write it without, move it to `batches`, or leave "
    "compile=True out"
)


@contextmanager
def explained(bound: Bound) -> Iterator[None]:
    """Turns what torch.compile raises in here into one clear error.

    Raises:
        RuntimeError: for what it cannot compile, with the module's name if it is found, and for what it has compiled too often.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes seconds

    hooks_were_off = _saved_tensors_hooks_get_disabled_error_message()
    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise RuntimeError(
            "compile: something that is not a tensor changes from step to step (a number, a counter, a flag that the loss or the "
            "model reads), and torch would compile it for each of its values. Pass it as a tensor in the batch, or leave "
            f"compile=True out. Torch says: {_first_line(error)}"
        ) from error
    except TorchDynamoException as error:
        where = _place(error, bound.model, bound.loss)
        raise RuntimeError(f"compile: torch.compile refuses {where}. Torch says: {_first_line(error)}. {_REMEDY}") from error
    finally:
        if hooks_were_off is None:
            # Where the compiler fails in the midst of a derivative, torch leaves them off, for the whole process.
            _saved_tensors_hooks_enable()


def is_of_too_many_kinds(error: RuntimeError) -> bool:
    """Whether torch has compiled one function as often as it does, for numbers and objects that changed between calls."""
    return type(error.__cause__).__name__ == "FailOnRecompileLimitHit"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith("raised:")]  # by whom: a backend
    return lines[0].rstrip(".") if lines else type(error).__name__


def _place(error: BaseException, model: nn.Module, loss: Callable[..., Any]) -> str:
    """The innermost module or the loss in whose code torch was."""
    for frame in reversed(getattr(error, "real_stack", None) or []):
        for name, module in model.named_modules():
            if _is_in(frame, type(module).forward):
                return f"{name!r} ({type(module).__name__}) at {frame.filename}:{frame.lineno}"
        if _is_in(frame, getattr(loss, "__func__", loss)):
            return f"the loss function at {frame.filename}:{frame.lineno}"
    for name, module in model.named_modules():
        if f"context: {module!r}\n" in str(error):  # it is refused as a whole, as an LSTM is
            return f"{name!r} ({type(module).__name__})"
    return "the loss or the model"


def _is_in(frame: Any, function: Any) -> bool:
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename != frame.filename:
        return False
    lines = [line for *_, line in code.co_lines() if line is not None]
    return bool(lines) and min(lines) <= frame.lineno <= max(lines)
