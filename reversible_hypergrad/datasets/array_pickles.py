"""Pickled batches of arrays, read without running what a pickle may ask for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_batch"]

Bytes = npt.NDArray[np.uint8]

# What arrays, as Python 2 and 3 pickle them, are made of; NumPy's module has had both names.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch of images does not need")
        return super().find_class(module, name)


def read_batch(file: Path, width: int) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """A dictionary's ``data``, uint8 (n, width), and ``labels``, n of them.

    Raises:
        ValueError: for a file that is damaged, asks for more than arrays, or holds something else.
    """
    try:
        with file.open("rb") as opened:
            batch = _ArraysOnly(opened, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise ValueError(f"{file}: expected a pickled batch of CIFAR-10: {error}. Fetch it again") from None
    found = (
        {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        if isinstance(batch, dict)
        else {}
    )
    if "data" not in found or "labels" not in found:
        raise ValueError(
            f"{file}: expected a dictionary with data and labels, got {sorted(map(str, found)) or type(batch).__name__}"
        )
    images, labels = np.asarray(found["data"]), np.asarray(found["labels"])
    if (
        images.dtype != np.uint8
        or images.shape[1:] != (width,)
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{file}: expected data of uint8 (n, {width}) and n labels, got {images.dtype} {images.shape} and "
            f"{labels.dtype} {labels.shape}"
        )
    return images, labels.astype(np.int64)
