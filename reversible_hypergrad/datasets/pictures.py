"""Files of pictures, by Pillow where it is installed, and averages over areas without it."""

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

__all__ = ["box_resized", "read_picture"]


def read_picture(file: Path, size: int, mode: str) -> Tensor:
    """A picture of ``size`` x ``size`` pixels, uint8 (channels, size, size).

    Args:
        file: in any format that Pillow reads, PNG and JPEG among them.
        size: of a side. Other sizes are brought to it by averages over areas, whatever their proportions.
        mode: Pillow's: "RGB" for three channels, "L" for one of grey.

    Raises:
        ImportError: where Pillow is not installed.
        ValueError: for a file that is no picture.
    """
    pillow = _pillow(file)
    try:
        with pillow.open(file) as opened:
            picture = opened.convert(mode)
            if picture.size != (size, size):
                picture = picture.resize((size, size), pillow.Resampling.BOX)
    except (OSError, SyntaxError) as error:  # as Pillow calls damaged PNGs
        raise ValueError(f"{file}: expected a picture, but Pillow says: {error}. Fetch it again, or move it away") from None
    pixels = torch.from_numpy(np.array(picture))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _pillow(file: Path) -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"{file} is a picture, which Pillow reads, and that is not installed: pip install pillow") from None
    return Image


def box_resized(images: Tensor, size: int) -> Tensor:
    """Averages over the pixels whose centre lies in an area, to the bit what Pillow's ``resize`` with ``BOX`` gives: first along
    rows and then along columns, rounded after each.

    Args:
        images: uint8 (..., n, n).
        size: of a side of the result, at most n.

    Returns:
        uint8 (..., size, size).
    """
    before = images.shape[-1]
    edges = torch.arange(size + 1) * before  # in units of 1 / size of a pixel, doubled below to hold centres
    centres = (2 * torch.arange(before) + 1) * size
    inside = ((centres > 2 * edges[:-1, None]) & (centres <= 2 * edges[1:, None])).float()
    counts = inside.sum(1)
    rows = (images.float() @ inside.T / counts + 0.5).floor()
    return (inside @ rows / counts[:, None] + 0.5).floor().to(torch.uint8)
