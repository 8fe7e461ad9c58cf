"""Commands that end in time, whatever they do."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "run"]


@dataclass(frozen=True)
class Ended:
    seconds: float
    status: int | None  # None: it was ended, with all that it had started, since it ran past its time

    @property
    def well(self) -> bool:
        return self.status == 0

    def __str__(self) -> str:
        how = "ran past its time and was ended" if self.status is None else f"exit status {self.status}"
        return f"{'passed' if self.well else how}, {self.seconds:.0f} s"


def run(
    command: Sequence[str | Path], seconds: float, *, log: Path | None = None, variables: Mapping[str, str] | None = None
) -> Ended:
    """Runs ``command`` for ``seconds`` at most, its output in ``log`` (or as ours), with ``variables`` in its environment."""
    began = time.monotonic()
    output = None if log is None else log.open("wb")
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=max(seconds, 0.0))
        except BaseException as error:
            # A group of its own: compilers, or the Python that a sanitizer has started, must not go on.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = None
    finally:
        if output is not None:
            output.close()
    return Ended(time.monotonic() - began, status)
