"""The adjoint of a reversible run's steps under a rule without a program: the rule's own functions, transposed."""

from collections.abc import Sequence
from types import SimpleNamespace

from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.reversible.group import ReversibleGroup
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.pull_back import PullBack
from reversible_hypergrad.reversible.record import Record
from reversible_hypergrad.reversible.signs import unpacked_signs
from reversible_hypergrad.rules.step import Halfway, pull_update

__all__ = ["RulePullBack"]


class RulePullBack(PullBack):
    """By vector-Jacobian products of the rule's functions, one tensor after the other."""

    def __init__(self, problem: Problem, group: ReversibleGroup, downstream: Downstream, totals: Cotangents) -> None:
        super().__init__(problem, group, downstream, totals)
        self._direction = group.vector()

    @property
    def vectors(self) -> list[Tensor]:
        return [self.aw, *self.az, self._direction]

    def undo_weights(self, step: int) -> tuple[Record, Outcome]:
        group, state = self.group, self.group.state
        record = group.pop_record(step)
        outcome = state.move_weights(record, back=True, with_hash=record.hash_before is not None)
        if step == group.steps.start:
            state.restore_initial(range(len(state.names)))  # the first gradient was taken there, not at the rounded weights
        self.pull_weights(step, record)
        return record, outcome

    def pull_weights(self, step: int, record: Record) -> None:
        group, state = self.group, self.group.state
        for i in range(len(group.members)):
            sigmas = record.numbers[i].tolist()
            z = {name: self._seen(i, self.value(i, k, sigmas[k])) for k, name in enumerate(self.rule.states)}
            w = self._seen(i, self.value(i, -1, sigmas[len(z)]))
            aw = self._seen(i, state.part(i, self.aw))
            pulled = pull_update(self.rule, self._learned(i, step), step, w, z, aw, self._signs(i, record))
            aw.copy_(pulled.w)
            for name, vector in zip(z, self.az, strict=True):
                by = pulled.z[name]
                if by is not None:
                    self._seen(i, state.part(i, vector)).add_(by)
            self._add_settings(i, step, pulled.settings)

    def undo_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> Outcome:
        group, state = self.group, self.group.state
        own = [gradients[m] for m in group.members]
        outcome = state.undo_states(record, own, record.hash_before is not None)
        self.pull_states(step, record, gradients, into)
        return outcome

    def pull_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> None:
        group, state = self.group, self.group.state
        for i, gradient in enumerate([gradients[m] for m in group.members]):
            z = {name: self._seen(i, self.value(i, k, state.sigma(i, k))) for k, name in enumerate(self.rule.states)}
            w = self._seen(i, self.value(i, -1, record.numbers[i, len(z)].item()))
            g = self._seen(i, gradient.detach().as_strided((gradient.numel(),), (1,)).to(self.aw.dtype))
            half = Halfway(self.rule, self._learned(i, step), step, g, w, z)
            az = {name: self._seen(i, state.part(i, vector)) for name, vector in zip(z, self.az, strict=True)}
            pulled = half.pull(az)
            direction = self._seen(i, state.part(i, self._direction)).zero_()
            if pulled.direction is not None:
                direction.copy_(pulled.direction)
            if pulled.w is not None:
                self._seen(i, state.part(i, self.aw)).add_(pulled.w)
            for name, vector in az.items():
                vector.copy_(pulled.z[name])
            self._add_settings(i, step, pulled.settings)
        group.scatter(self._direction, into)

    def add(self, products: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> None:
        for i, m in enumerate(self.group.members):
            product = products[m]
            if product is not None:
                self.group.view(self.aw, i).add_(product)

    def finish(self) -> None:
        pass

    def _signs(self, i: int, record: Record) -> Tensor | None:
        if record.signs is None:
            return None
        size = int(self.group.state.plane_bytes[i])
        return self._seen(i, unpacked_signs(record.signs[i], self.group.weights[i].numel(), size, self.aw.dtype))

    def _add_settings(self, i: int, step: int, by_settings: dict[str, Tensor]) -> None:
        self.add_to_totals(i, step, {name: self._flat(i, by) for name, by in by_settings.items()})

    def _learned(self, i: int, step: int) -> SimpleNamespace:
        """The settings as the rule's functions take them, with leaves."""
        h = self.attached(i, step, numbers=True)
        for name, value in vars(h).items():
            if isinstance(value, Tensor) and value.dim() > 0:
                setattr(h, name, self._seen(i, value.detach()).requires_grad_(value.requires_grad))
        return h

    def _seen(self, i: int, flat: Tensor) -> Tensor:
        """As the rule's functions take it."""
        return flat if self.rule.elementwise or flat.dim() == 0 else self.group.view_of_flat(flat, i)

    def _flat(self, i: int, values: Tensor) -> Tensor:
        """A derivative per weight in memory order, whatever the rule's functions see."""
        weight = self.group.weights[i]
        if self.rule.elementwise or values.shape != weight.shape or values.dim() == 0:
            return values
        flat = values.new_empty(values.numel())
        flat.as_strided(weight.shape, weight.stride()).copy_(values)
        return flat
