"""A momentum as a fraction, and what decaying by it costs."""

import math
from collections.abc import Iterable
from fractions import Fraction

from reversible_hypergrad import _core

__all__ = ["approximate_momentum", "information_limit", "plan_capacity"]


def approximate_momentum(momentum: float, state_bits: int = 64) -> Fraction:
    """The fraction n/d that stands for ``momentum``: the simplest one within a tolerance.

    The fraction *is* the momentum of the run, for training and for the adjoint alike. A small d matters more than a
    small error: after a step the low part of a velocity is noise of up to d quanta. The tolerance is relative to
    ``min(momentum, 1 - momentum)``: 6e-8 with 64-bit state (every decimal of up to 3 digits is exact), 1e-3
    with 32-bit state. Where that needs a denominator above the format's largest (65536 or 8192), the tolerance doubles, up to
    one percent.

    Args:
        momentum: in (0, 1].
        state_bits: 32 or 64.

    Raises:
        ValueError: outside (0, 1], or within about 1.5e-5 (1.2e-4 with 32 bits) of 0 or 1, but not 1.

    >>> from reversible_hypergrad import core
    >>> core.approximate_momentum(0.8731), core.approximate_momentum(0.8731, state_bits=32)
    (Fraction(8731, 10000), Fraction(55, 63))

    Source: Maclaurin, Duvenaud, Adams 2015, section 2.2; the simplest fraction by continued fractions (Stern, Brocot).
    """
    return Fraction(*_core.approximate_momentum(momentum, state_bits))


def information_limit(momentum: Fraction) -> float:
    """Bits that one decay of one weight destroys, log2(d/n): what any exact reversal must keep.

    >>> from fractions import Fraction
    >>> from reversible_hypergrad import core
    >>> round(core.information_limit(Fraction(9, 10)), 4)
    0.152
    """
    return math.log2(momentum.denominator / momentum.numerator)


def plan_capacity(momenta: Iterable[float], state_bits: int = 64) -> dict[str, float]:
    """What the information buffer will take for a schedule of momenta, known before any data is seen.

    Args:
        momenta: one per step.
        state_bits: 32 or 64.

    Returns:
        A dict in bits per weight, for large tensors: ``spilled`` (written to planes), ``accumulators`` (their full
        width), ``payload`` (spilled, and what the accumulators hold), ``limit`` (sum of log2(1/momentum)).

    Cost: about 1 us per step.

    >>> from reversible_hypergrad import core
    >>> plan = core.plan_capacity([0.9] * 1000)
    >>> round(plan["limit"], 2), round(plan["payload"], 2)
    (152.0, 152.31)
    """
    bound, spilled, limit = 1, 0, 0.0
    for momentum in momenta:
        n, d = _core.approximate_momentum(momentum, state_bits)
        bound, spills = _core.plan_pushes(bound, n, d, _core.WEIGHTS_PER_LANE, state_bits)
        spilled += sum(spills)
        limit += math.log2(d / n)
    lane = _core.WEIGHTS_PER_LANE
    return {
        "spilled": spilled / lane,
        "accumulators": state_bits / lane,
        "payload": (spilled + math.log2(bound)) / lane,
        "limit": limit,
    }
