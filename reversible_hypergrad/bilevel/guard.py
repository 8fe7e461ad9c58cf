"""Which hypergradients are followed."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from reversible_hypergrad.checks import check_integer

__all__ = ["Guard", "Watch", "check_guard"]


@dataclass(frozen=True)
class Guard:
    """Refuses hypergradients that are not finite, or much longer than those before, as they are where training has become
    chaotic (section 4 of Maclaurin et al. 2015): such a one is exact, and says nothing about the next run.

    After a refusal the hyperparameters and the state of the outer optimizer are those again from which the last accepted
    hypergradient led on. The first refusal of a call of ``run`` is a RuntimeWarning; each is in the log, and counted in
    the result.

    Args:
        factor: a norm of more than so many times the median of the last accepted ones is refused; above 1. Norms of exactly 0 do
            not count in the median.
        window: how many accepted ones, at least 1.
        after: with so many refusals, less than two accepted ones in a row between them, the outer learning rate is cut, and
            so with each further one; at least 1.
        cut: by this factor, in (0, 1], for the rest of the run.
        stop: with so many, the run ends; at least 1.

    Raises:
        TypeError: for what is no number.
        ValueError: for one out of range.

    Cost: copies of the hyperparameters and of the optimizer's state, and one norm per outer step.

    >>> import reversible_hypergrad as rh
    >>> rh.Guard(4)
    Guard(factor=4, window=20, after=2, cut=0.5, stop=10)
    """

    factor: float = 10.0
    window: int = 20
    after: int = 2
    cut: float = 0.5
    stop: int = 10

    def __post_init__(self) -> None:
        for name in ("factor", "cut"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Guard: {name}: expected a number, got {value!r}")
        if not self.factor > 1:
            raise ValueError(f"Guard: factor: expected a number above 1, got {self.factor!r}")
        if not 0 < self.cut <= 1:
            raise ValueError(f"Guard: cut: expected a number in (0, 1], got {self.cut!r}")
        for name in ("window", "after", "stop"):
            check_integer(f"Guard: {name}", getattr(self, name), least=1)


def check_guard(guard: Any) -> None:
    if guard is not None and not isinstance(guard, Guard):
        raise TypeError(f"guard: expected an rh.Guard, or None, got {type(guard).__name__}")


@dataclass
class Watch:
    """What a guard has seen.

    Attributes:
        norms: the last accepted ones.
        strikes: refusals, less than two accepted ones in a row between them.
        calm: accepted ones in a row.
        scale: what is left of the outer learning rate.
        refused: all refusals.
    """

    guard: Guard
    norms: list[float] = field(default_factory=list)
    strikes: int = 0
    calm: int = 0
    scale: float = 1.0
    refused: int = 0

    def objection(self, value: float, norm: float) -> str | None:
        """Why a hypergradient is to be refused, if it is."""
        if not math.isfinite(value):
            return f"the outer loss is {value}"
        if not math.isfinite(norm):
            return f"its norm is {norm}"
        usual = median(self.norms) if self.norms else math.inf
        if norm > self.guard.factor * usual:
            return f"its norm {norm:.3g} is more than {self.guard.factor:g} times {usual:.3g}, the median of those before"
        return None

    def accept(self, norm: float) -> None:
        if norm > 0:
            self.norms = [*self.norms, norm][-self.guard.window :]
        self.calm += 1
        if self.calm >= 2:
            self.strikes = 0

    def refuse(self) -> None:
        self.refused += 1
        self.strikes += 1
        self.calm = 0
        if self.strikes >= self.guard.after:
            self.scale *= self.guard.cut

    @property
    def gives_up(self) -> bool:
        return self.strikes >= self.guard.stop

    def plain(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "guard"}

    def restore(self, kept: dict[str, Any]) -> None:
        vars(self).update(kept)
