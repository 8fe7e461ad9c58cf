"""Which tensors fixed-point state can be kept for."""

import torch
from torch import Tensor

from reversible_hypergrad._ops import refuse_device

__all__ = ["check_parameter", "default_bits"]

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


def default_bits(dtype: torch.dtype) -> int:
    """The width of state that weights deserve: 32 bits hold what training in float32 makes of them, 64 in float64."""
    return 64 if dtype == torch.float64 else 32
