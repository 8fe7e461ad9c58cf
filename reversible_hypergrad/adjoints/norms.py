"""How large the gradient by the weights is on its way back, and what that says about training."""

import warnings
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.report import Report

__all__ = ["AdjointNorms"]

# A run whose weights depend on each other so much is chaotic: below, learning rates can be learned (bench/chaos.py).
_EXPLODED = 1e4


class AdjointNorms:
    """Euclidean norms of a loss's gradient by the weights, one for each number of steps taken.

    Args:
        vectors: what holds the gradient; they change in place.
        steps: of the run.
    """

    def __init__(self, vectors: Sequence[Tensor], steps: range) -> None:
        self._vectors, self._steps = vectors, steps
        self._norms = [vector.new_zeros(len(steps) + 1) for vector in vectors]

    def note(self, taken: int) -> None:
        """The vectors hold the gradient by the weights after ``taken`` steps."""
        for vector, norms in zip(self._vectors, self._norms, strict=True):
            torch.linalg.vector_norm(vector, out=norms[taken - self._steps.start])

    def finish(self, report: Report) -> None:
        """Writes them down. Warns if they have exploded."""
        squares = torch.stack([norms.double().cpu().square() for norms in self._norms]).sum(0)
        norms = squares.sqrt()
        report.adjoint_norms = array("d", norms.tolist())
        seen = norms.nonzero()
        if not len(seen):
            return
        end = int(seen[-1])  # where the first of them enters
        peak = int(norms[: end + 1].nan_to_num(torch.inf).argmax())
        growth = float(norms[peak] / norms[end])
        if not growth <= _EXPLODED:
            begun = self._steps.start
            warnings.warn(
                f"the gradient by the weights grew {growth:.1e}-fold from step {begun + end} back to step {begun + peak}: "
                "training is chaotic there. The hypergradient is exact, and tells what changes do that are so many times smaller "
                "than others that matter; following it goes astray. Lower the learning rates, train for fewer steps, or look at "
                "the last ones only, with rh.Truncated(steps, rh.Reversible()). report.adjoint_norms shows where it grows",
                RuntimeWarning,
                stacklevel=2,
            )
