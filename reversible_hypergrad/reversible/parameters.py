"""Which tensors fixed-point state can be kept for."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from reversible_hypergrad._ops import refuse_device

__all__ = ["check_apart", "check_parameter", "default_bits"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_parameter(parameter: Tensor, name: str) -> None:
    """Raises TypeError or ValueError if no fixed-point state can be kept for ``parameter``."""
    if parameter.dtype not in _FLOATS:
        raise TypeError(
            f"{name}: expected float32, float64, bfloat16 or float16, got {parameter.dtype}. Leave it out of the optimizer, "
            "or split complex weights by torch.view_as_real"
        )
    if parameter.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense parameter, got layout {parameter.layout}. Use parameter.to_dense()")
    refuse_device(name, parameter.device)
    # Dense in some order of dimensions (channels-last, transposed): no holes and no element twice.
    expected = 1
    for stride, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected and parameter.numel() > 0:
            raise ValueError(
                f"{name}: expected weights without gaps or overlaps in memory, got strides {parameter.stride()} for shape "
                f"{tuple(parameter.shape)}. Use nn.Parameter(parameter.detach().contiguous())"
            )
        expected *= size


def check_apart(parameters: Mapping[str, Tensor]) -> None:
    """Raises ValueError if two of them share memory: each would be moved by itself.

    Args:
        parameters: by name, each dense.
    """
    spans: dict[tuple[torch.device, int], list[tuple[int, int, str]]] = {}
    for name, parameter in parameters.items():
        if parameter.numel():
            begin = int(parameter.storage_offset()) * parameter.element_size()
            memory = parameter.device, parameter.untyped_storage().data_ptr()
            spans.setdefault(memory, []).append((begin, begin + parameter.numel() * parameter.element_size(), name))
    for own in spans.values():
        for (_, end, one), (begin, _, other) in pairwise(sorted(own)):
            if begin < end:
                raise ValueError(
                    f"{other}: expected memory of its own, got some that it shares with {one}. Tie weights by one nn.Parameter "
                    "in both places, or copy it: nn.Parameter(parameter.detach().clone())"
                )


def default_bits(dtype: torch.dtype) -> int:
    """The width of state that weights deserve: 32 bits hold what training in float32 makes of them, 64 in float64."""
    return 64 if dtype == torch.float64 else 32
