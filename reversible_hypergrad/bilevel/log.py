"""One flat dict of numbers per outer step, to functions and to a file."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Callback", "CsvLog", "Record"]

Record = dict[str, float]
Callback = Callable[[Record], object]


class CsvLog:
    """A file of one line per record, below a line of names. Each line is on its way to the disk when ``write`` returns, so a
    killed process leaves whole lines.

    Args:
        path: of the file, which is replaced.
        names: of the columns.
        rows: that are there already, such as those before a kept point.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, names: Sequence[str], rows: Sequence[Record] = ()) -> None:
        self._names = list(names)
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_bytes(b"".join([_line(self._names), *map(self._bytes, rows)]))
        unfinished.replace(path)
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Raises OSError if it cannot be written, such as on a full disk."""
        line = self._bytes(record)
        if self._file.write(line) != len(line):  # one call of the system: a killed process wrote all of it, or nothing
            raise OSError(f"log: {self._path} could not be written to: is the disk full?")

    def close(self) -> None:
        self._file.close()

    def _bytes(self, record: Record) -> bytes:
        return _line([_cell(record[name]) for name in self._names])


def _cell(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
