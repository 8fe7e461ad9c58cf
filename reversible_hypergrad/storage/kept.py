"""Files that outlive a killed process: each is whole or not there."""

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from reversible_hypergrad.errors import ReversalError

__all__ = ["KeptFiles"]

_SUFFIX, _UNFINISHED = ".kept", ".unfinished"


class KeptFiles:
    """Nests of tensors and plain values in one directory, by name.

    Args:
        directory: made if it is not there, and removed by :meth:`remove` if nothing else is in it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"*{_UNFINISHED}"):
            left.unlink()

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._directory.glob(f"*{_SUFFIX}"))

    def write(self, name: str, content: Any) -> None:
        """Returns when it is on the disk.

        Raises:
            OSError: if it cannot be written, such as on a full disk. What was there before is as it was.
        """
        unfinished = self._path(name).with_suffix(_UNFINISHED)
        try:
            with unfinished.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path(name))
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> Any:
        """Raises ReversalError for a file that is not as it was written."""
        try:
            return torch.load(self._path(name), weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
            raise ReversalError(
                f"{self._path(name)} cannot be read, so the run that is kept there cannot go on: {str(error).splitlines()[0]}. "
                "Delete the directory to begin anew"
            ) from error

    def drop(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def remove(self, last: str) -> None:
        """All files, that named ``last`` as the last one, and the directory if it is empty then."""
        for name in sorted(self.names(), key=last.__eq__):
            self.drop(name)
        with contextlib.suppress(OSError):  # it holds something of others
            self._directory.rmdir()

    def _path(self, name: str) -> Path:
        return self._directory / (name + _SUFFIX)
