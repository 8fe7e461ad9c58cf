"""Exact reversal: the bits that decays drop in place of the trajectory."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from reversible_hypergrad.adjoints.base import Adjoint
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.per_step import PerStep
from reversible_hypergrad.adjoints.reversible_run import ReversibleRun
from reversible_hypergrad.adjoints.segments import level
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.reversible.run_log import LOG_BYTES
from reversible_hypergrad.storage.places import check_place

__all__ = ["Reversible"]

_OVERHEAD = 0.1  # of integer steps, hashes and records over plain floats, in units of training


class Reversible(Adjoint):
    """Runs training backwards bit for bit, keeping only the bits that its decays destroy. Exact.

    For :class:`SGD`, :class:`TracedSGD` and every :class:`Rule` whose states decay by factors in [2^-16, 1]. The rounding of
    fixed point counts as the identity. With several ``segments``, the bits of all but the last are dropped, and the state between
    two kept; the way back trains each of them once more.

    Args:
        state_bits: 32, 64, or None: 64 for float64 weights and 32 for all others, which is as accurate as they are. See
            :class:`ReversibleSGD`.
        verify_every: the state is hashed at every so-many-th step and compared on the way back; the start always is.
            1 costs about a tenth of an optimizer step and names the very step that went wrong. On a GPU the hashes are
            compared every 64 steps, so that the host need not wait; the step that is named is the same.
        buffer: where the bits wait: "device", "host", or a directory (a file there, written and read behind the computation,
            checked when read, removed at the end).
        segments: 1, or how many, of equal length; or "auto": as many as take the least memory for the number of steps. Those
            get shorter towards the end, so that each part of the way back takes as much memory as any other. The trained weights
            do not depend on their number; on a GPU only where room must be made for numbers that grow, which happens at a look.

    Cost: 4 (8) bytes per weight for it and each of the rule's states, 8 (16) with :class:`SGD`; log2(1/factor) bits per weight
    and step for each factor that decays, 0.152 at a momentum of 0.9; 16 bytes per step; backward is one evaluation with
    Hessian-vector product per step. Segments: the bytes per weight once more for each state between two, and almost one more
    forward run; at momentum 0.9 and 100,000 steps 0.17 kB per weight in place of 1.9 kB. After ``backward`` the state is let
    go; a second ``backward`` (with retain_graph=True) trains once more.

    *Recommended* wherever memory matters and gradients replay bit for bit. *Not recommended* for momenta near 0, which destroy
    log2(1/momentum) bits, up to 16.

    Raises:
        TypeError: if ``verify_every`` or ``segments`` is no integer (or "auto").
        ValueError: for other ``state_bits``, or too small a number; from :func:`train` for factors below 2^-16, momentum 0 among
            them, and Nesterov's momentum, which cannot be undone.
        NotADirectoryError: if ``buffer`` names no place and no directory.

    >>> import reversible_hypergrad as rh
    >>> rh.Reversible(state_bits=32, verify_every=10)
    Reversible(state_bits=32, verify_every=10, buffer='device', segments=1)

    Source: Maclaurin, Duvenaud, Adams, *Gradient-based Hyperparameter Optimization through Reversible Learning*,
    ICML 2015, algorithm 2, in torch's convention.
    """

    def __init__(
        self, state_bits: int | None = None, verify_every: int = 1, buffer: str | Path = "device", segments: int | str = 1
    ) -> None:
        if state_bits not in (None, 32, 64):
            raise ValueError(f"state_bits: expected 32, 64 or None, got {state_bits!r}")
        check_integer("verify_every", verify_every, least=1)
        if segments != "auto":
            check_integer("segments", segments, least=1, otherwise="'auto'")
        self.state_bits = state_bits
        self.verify_every = verify_every
        self.buffer = check_place("buffer", buffer)
        self.segments = segments

    def __repr__(self) -> str:
        return (
            f"Reversible(state_bits={self.state_bits}, verify_every={self.verify_every}, buffer={str(self.buffer)!r}, "
            f"segments={self.segments!r})"
        )

    def start(self, problem: Problem) -> "ReversibleRun":
        reason = problem.irreversible()
        if reason is not None:
            raise ValueError(reason)
        return ReversibleRun(self, problem)

    def starts(self, bits_per_step: PerStep, state_bytes: float) -> list[int]:
        """First steps of the segments, 0 first.

        Args:
            bits_per_step: what each step destroys in all weights together.
            state_bytes: of one state between segments.
        """
        steps = bits_per_step.steps
        if not isinstance(self.segments, str):
            count = max(1, min(self.segments, steps))
            return [i * steps // count for i in range(count)]
        costs = PerStep(bits_per_step.numbers / 8 + LOG_BYTES, steps)
        # The initial state is the initial weights, and the last segment is walked back before any state is needed.
        return level(costs, state_bytes, lambda j: max(j - 1, 0))[0]

    def cost(self, size: RunSize) -> Cost:
        forgets = any(0 in np.asarray(numbers) for _, numbers in size.factors)
        obstacle = "momentum 0 cannot be undone" if forgets else size.irreversible
        if obstacle:
            return Cost(0.0, 0.0, obstacle)
        bits = size.information_bits
        state_bits = self.state_bits or (64 if size.weight_bytes == 8 else 32)
        state = size.weights * ((1 + size.states - size.squares) * state_bits / 8 + 8 * size.squares)
        starts = self.starts(bits, state)
        recorded = PerStep(bits.numbers / 8 + LOG_BYTES * max(len(size.factors), 1), size.steps)
        most = max(
            state * max(j - 1, 0) + recorded.until(end) - recorded.until(first)
            for j, (first, end) in enumerate(pairwise([*starts, size.steps]))
        )
        held = size.common_bytes + state
        if state_bits < 8 * size.weight_bytes + 32:
            held += size.vector_bytes  # initial weights that the fixed point rounds
        if len(starts) > 1:
            held += size.vector_bytes  # initial weights, to train again from
        again = starts[-1]
        return Cost(held + most, size.time(again, _OVERHEAD * (1 + again / max(size.steps, 1))))
