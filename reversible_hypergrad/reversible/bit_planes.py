"""Bit planes in torch's operations, in the kernels' layout; see csrc/core/planes.h."""

import torch
from torch import Tensor

__all__ = ["contract", "expand", "packed", "unpacked"]


def contract(integers: Tensor, shift: int, centre: int, planes: Tensor) -> Tensor:
    """``(integers + centre) >> shift``, the bits that leave written to ``planes``.

    Args:
        integers: flat, int64 or int32.
        planes: uint8, ``shift * ceil(n / 8)`` bytes.
    """
    if shift == 0:
        return integers
    moved = integers + centre
    rows = planes.view(shift, -1)
    for bit in range(shift):
        rows[bit] = packed((moved >> bit) & 1, rows.shape[1])
    return moved >> shift


def expand(integers: Tensor, shift: int, centre: int, planes: Tensor) -> Tensor:
    """The inverse."""
    if shift == 0:
        return integers
    moved = integers << shift
    for bit, row in enumerate(planes.view(shift, -1)):
        moved = moved + (unpacked(row, integers.numel()).to(integers.dtype) << bit)
    return moved - centre


def packed(bits: Tensor, size: int) -> Tensor:
    """A plane of ``size`` bytes."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, 8 * size - bits.numel())).view(size, 8)
    return (padded << _places(bits.device)).sum(1, dtype=torch.uint8)


def unpacked(row: Tensor, count: int) -> Tensor:
    """The first ``count`` bits of a plane."""
    return (row[:, None] >> _places(row.device) & 1).flatten()[:count]


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
