"""What an outer loop returns."""

import math
from dataclasses import dataclass
from typing import Any

from reversible_hypergrad.bilevel.log import Record

__all__ = ["Result"]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What an outer loop found.

    Attributes:
        h: the nest at the best outer step: by score if there is one, else by outer loss. Online, where losses of different inner
            steps cannot be compared, and without a score, the last one. Its tensors are copies, and require grad as those given.
        last: the nest after the last outer step.
        best: the score, or the outer loss, of ``h``; NaN if it has none.
        best_step: the outer step of ``h``.
        history: one record per outer step, as callbacks get them.
        refused: hypergradients that were not followed.
        seconds: wall-clock time; of a resumed loop, in all its processes up to kept points.
        cpu_seconds: the processor's, of all threads.
        inner_steps: steps of all inner runs.
        stopped: why it ended.

    ``str()`` of it is a short report.
    """

    h: Any
    last: Any
    best: float
    best_step: int
    history: list[Record]
    refused: int
    seconds: float
    cpu_seconds: float
    inner_steps: int
    stopped: str

    def __repr__(self) -> str:
        losses = [record["outer_loss"] for record in self.history if not record["refused"]]
        shown = f"outer loss {losses[0]:.4g} -> {losses[-1]:.4g}" if losses else "no outer loss"
        best = f"step {self.best_step}" + ("" if math.isnan(self.best) else f", {self.best:.4g}")
        return (
            f"{len(self.history)} outer steps, {self.inner_steps} inner steps, {self.seconds:.1f} s "
            f"({self.cpu_seconds:.1f} s of CPU)\n"
            f"{shown}; best at {best}; {self.refused} refused\nended: {self.stopped}"
        )
