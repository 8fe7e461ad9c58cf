"""What a command writes: every failure is one line that says where."""

import os
import sys
import tempfile
from pathlib import Path

from reversible_hypergrad.cli.errors import UsageError

__all__ = ["show", "writable", "write"]

_PROBE = 64 << 10  # bytes, above what the results take without figures


def show(text: str) -> None:
    """Prints to stdout.

    Raises:
        UsageError: if nobody takes it, such as a full disk or a closed pipe.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # Python tries once more when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UsageError(f"standard output cannot be written: {error.strerror}") from None


def write(path: Path, content: str | bytes) -> None:
    """A whole file.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UsageError(f"--output: {path} cannot be written: {error.strerror}") from None


def writable(output: Path) -> Path:
    """The output directory, made if need be: a minute of work must not end at a full stop.

    Raises:
        UsageError: if it cannot be made, or if nothing can be written there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output: cannot make the directory {output}: {error.strerror}") from None
    try:
        with tempfile.TemporaryFile(dir=output) as probe:
            probe.write(bytes(_PROBE))
    except OSError as error:
        raise UsageError(f"--output: {output} is not writable: {error.strerror}") from None
    return output
