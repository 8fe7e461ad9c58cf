"""Named arrays in NumPy's ``.npz``."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["arrays_of"]


def arrays_of(file: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names.

    Raises:
        ValueError: for a file that is no archive of arrays, is damaged, or lacks a name.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise ValueError(f"it has no {', '.join(absent)}, but {', '.join(archive.files) or 'nothing'}")
            return {name: archive[name] for name in names}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: expected an archive .npz with {', '.join(names)}: {error}") from None
