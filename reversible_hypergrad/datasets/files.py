"""Files of a data set in the places where its downloads leave them."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

__all__ = ["Directory", "as_directory", "found_in", "missing", "places"]

Directory = str | PathLike[str]

_LISTED = 6  # of a folder's entries in an error


def as_directory(directory: Directory) -> Path:
    """Refuses what is no folder that exists."""
    path = Path(directory)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a directory. Give the folder that holds the data set's files")
    return path


def places(directory: Path, subfolders: Sequence[str]) -> list[Path]:
    """The folder itself, and those of its subfolders that exist."""
    return [directory, *(directory / name for name in subfolders if (directory / name).is_dir())]


def found_in(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first file that exists, by folder and then by name."""
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def missing(what: str, folders: Sequence[Path], remedy: str) -> FileNotFoundError:
    """The error of a file that is in none of the folders, with what is there in its place."""
    there = []
    for folder in folders:
        entries = sorted(entry.name for entry in folder.iterdir())
        more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
        there.append(f"{folder} holds {', '.join(entries[:_LISTED]) or 'nothing'}{more}")
    return FileNotFoundError(f"{what} is missing: {'; '.join(there)}. {remedy}")
