"""A copy of a user's model, for a run to train."""

import copy
from typing import Any

from torch import Tensor, nn

__all__ = ["private_copy"]

# By name: to import them takes long, and not every build of torch has them.
_DATA_PARALLEL = "DistributedDataParallel"
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy, ties and modes kept. Cached non-leaf tensors, which torch cannot deep-copy, are copied detached.

    Raises:
        TypeError: for what is no module, and for one that is spread over processes.
        ValueError: for a parameter with hooks, which a copy does not have.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    _refuse_distributed(model)
    _refuse_hooks(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def _refuse_distributed(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds, place = _names(module), f"model.{name}" if name else "model"
        if _DATA_PARALLEL in kinds:
            raise TypeError(
                f"{place}: got a {type(module).__name__}, which averages gradients over processes, but a run trains a copy in "
                f"this process alone. Pass what it wraps, {place}.module"
            )
        if any(kind in kinds for kind in _SHARDED):
            raise TypeError(
                f"{place}: got a {type(module).__name__}, of whose weights this process holds a part alone, but a run trains a "
                "copy in this process alone. Pass the model as it is before it is sharded"
            )
    for name, parameter in model.named_parameters():
        if "DTensor" in _names(parameter):
            raise TypeError(
                f"model: got a DTensor as its parameter {name!r}, spread over processes, but a run trains a copy in this process "
                "alone. Pass a model of ordinary tensors, with the numbers of parameter.full_tensor()"
            )


def _refuse_hooks(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"model: expected parameters without hooks, got one on {name!r} (register_hook), which a run would not call: it "
                "takes gradients of a copy. To clip, pass clip=rh.clip_norm(...) or rh.clip_value(...); write anything else into "
                "the loss, or into a rule of your own; and remove the hook"
            )


def _names(instance: object) -> list[str]:
    """Of its class and those that it is derived from."""
    return [kind.__name__ for kind in type(instance).__mro__]
