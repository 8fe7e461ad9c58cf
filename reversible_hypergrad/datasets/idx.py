"""The IDX format of MNIST's files."""

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_idx"]


def read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of bytes with that many dimensions, gzipped if its name ends in ``.gz``, as uint8 on the CPU.

    Raises:
        ValueError: truncated, damaged, another type or number of dimensions, or too many bytes.
        OSError: unreadable.
    """
    content = _content(path)
    magic = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and magic != 0x800 + dimensions:
        raise ValueError(
            f"{path} is no IDX file of bytes in {dimensions} dimensions: expected magic {0x800 + dimensions}, got {magic}. "
            "Fetch it again, and check that its name is its own"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is truncated: expected a header of {header} bytes, got {len(content)}. Fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - header != math.prod(shape):
        short = "truncated" if len(content) - header < math.prod(shape) else "damaged"
        raise ValueError(
            f"{path} is {short}: its header promises {math.prod(shape)} bytes ({' x '.join(map(str, shape))}), got "
            f"{len(content) - header}. Fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _content(path: Path) -> bytes:
    try:
        with cast(IO[bytes], gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            return file.read()
    except EOFError:
        raise ValueError(f"{path} is truncated: its gzip stream ends too early. Fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}. Fetch it again") from None
