"""The signs that a step keeps, as bit planes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.reversible.bit_planes import packed, unpacked

__all__ = ["joined", "packed_signs", "split", "unpacked_signs"]


def packed_signs(signs: Tensor, plane_bytes: int) -> Tensor:
    """One tensor's: a plane of what is negative and, if there are zeros, one of these; uint8.

    Args:
        signs: flat.
        plane_bytes: of one plane.
    """
    zeros = signs == 0
    planes = [packed(signs < 0, plane_bytes)]
    if bool(zeros.any()):
        planes.append(packed(zeros, plane_bytes))
    return torch.cat(planes)


def unpacked_signs(planes: Tensor, count: int, plane_bytes: int, dtype: torch.dtype) -> Tensor:
    """The inverse; ``count`` signs, flat."""
    negative = unpacked(planes[:plane_bytes], count).bool()
    found = torch.where(negative, -1.0, 1.0).to(dtype)
    if planes.numel() > plane_bytes:
        found[unpacked(planes[plane_bytes:], count).bool()] = 0.0
    return found


def joined(pieces: Sequence[Tensor], plane_bytes: Sequence[int]) -> Tensor:
    """The planes of all tensors as one, behind a byte for each that tells how many it has: none, if it took no part."""
    counts = [piece.numel() // size if size else 0 for piece, size in zip(pieces, plane_bytes, strict=True)]
    return torch.cat([torch.tensor(counts, dtype=torch.uint8, device=pieces[0].device), *pieces])


def split(whole: Tensor, plane_bytes: Sequence[int]) -> list[Tensor]:
    """The inverse."""
    counts, planes = whole[: len(plane_bytes)].tolist(), whole[len(plane_bytes) :]
    return list(torch.split(planes, [count * size for count, size in zip(counts, plane_bytes, strict=True)]))
