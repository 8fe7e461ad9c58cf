"""A gradient made of another one."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reversible_hypergrad.problem.gradient import Evaluation, Gradient, SideEffects

__all__ = ["Decorator"]


class Decorator(Gradient):
    """As ``inner`` in everything. A subclass says what it does otherwise.

    One that changes the gradients, clips them say, overrides ``of``, ``values`` and ``attached``. With gradients J g of the inner
    ones g, its products with directions u are the inner ones with J' u.

    Args:
        inner: the gradient that it is made of, of which only the interface is used.
    """

    def __init__(self, inner: Gradient) -> None:
        self.inner = inner
        self.names, self.weights, self.wanted = inner.names, inner.weights, inner.wanted

    def held_vectors(self) -> int:
        return self.inner.held_vectors()

    def more_passes(self) -> float:
        return self.inner.more_passes()

    def load(self, step: int) -> Any:
        return self.inner.load(step)

    def prepare(self, step: int, data: Any, part: int = 0) -> Any:
        return self.inner.prepare(step, data, part)

    def of(self, batch: Any) -> Evaluation:
        return self.inner.of(batch)

    def values(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        return self.inner.values(batch)

    def attached(self, batch: Any, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        return self.inner.attached(batch, weights)

    def diagnose(self, step: int) -> str:
        return self.inner.diagnose(step)

    def restart(self) -> None:
        self.inner.restart()

    def side_effects(self) -> SideEffects:
        return self.inner.side_effects()

    def expect_along(self) -> None:
        self.inner.expect_along()

    def expect_no_replay(self) -> None:
        self.inner.expect_no_replay()

    def memory(self) -> Any:
        return self.inner.memory()

    def remember(self, memory: Any) -> None:
        self.inner.remember(memory)

    def let_go(self) -> None:
        self.inner.let_go()
