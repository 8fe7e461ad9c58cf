"""Parts of a bench, each under a time budget, and the Markdown that they write line by line."""

import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Deadline", "OverBudget", "Part", "Setup", "run"]


class OverBudget(Exception):
    """A part took longer than it may."""


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """To be called in every loop, since nothing can stop a kernel from outside."""
        if time.monotonic() > self._end:
            raise OverBudget(f"ran past its {self.seconds:.3g} s")


@dataclass(frozen=True)
class Setup:
    device: torch.device
    tiny: bool  # toy sizes, to see that everything runs
    data: Path | None


@dataclass(frozen=True)
class Part:
    title: str
    seconds: float
    lines: Callable[[Setup, Deadline], Iterator[str]]  # of Markdown; what came before a failure stays


def run(parts: list[Part], setup: Setup, header: list[str], target: Path, seconds: float = math.inf) -> list[str]:
    """Runs every part, whatever happens in the others, and writes the report after each; ``seconds`` for all of them. Returns the
    titles of those that failed."""
    lines, failed = list(header), []
    end = time.monotonic() + seconds
    target.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        lines += ["", f"## {part.title}", ""]
        print(f"{part.title} ...", flush=True)
        began = time.monotonic()
        try:
            if began >= end:
                raise OverBudget(f"left out, since the {seconds:g} s for all parts are over")
            for line in part.lines(setup, Deadline(min(part.seconds, end - began))):
                lines.append(line)
                print(line, flush=True)
        except Exception as error:
            failed.append(part.title)
            lines += ["", f"**FAILED** after {time.monotonic() - began:.0f} s: {type(error).__name__}: {error}"]
            traceback.print_exc()
        else:
            lines += ["", f"({time.monotonic() - began:.0f} s)"]
        target.write_text("\n".join(lines) + "\n")
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
    return failed
