"""The adjoint of a reversible run's steps: its interface, and the kernels that undo them along with it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad._ops import ops
from reversible_hypergrad.problem.problem import Cotangents, Problem
from reversible_hypergrad.reversible.group import ReversibleGroup
from reversible_hypergrad.reversible.moves import ProgramMoves
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.record import Record
from reversible_hypergrad.reversible.step_sums import StepSums, apart_from
from reversible_hypergrad.rules.step import Halfway, pull_update

__all__ = ["ProgramPullBack", "PullBack"]


class PullBack(ABC):
    """``aw`` and ``az``, the gradients by a group's weights and states, on their way back through its steps.

    In turn, for every step: :meth:`undo_weights`, then, with the gradient at the weights that stand there,
    :meth:`undo_states`, then :meth:`add` with the directions' products.

    Args:
        problem: the run.
        group: its parameters of one device.
        cotangents: the gradients by the trained weights, one per weight of the problem; None stands for zero.
        totals: get the derivatives by settings.
    """

    def __init__(self, problem: Problem, group: ReversibleGroup, cotangents: Sequence[Tensor | None], totals: Cotangents) -> None:
        self.group, self.totals, self.rule = group, totals, problem.rule
        self.aw = group.gather(cotangents)
        self.az = [group.vector() for _ in problem.rule.states]

    @property
    @abstractmethod
    def vectors(self) -> list[Tensor]:
        """What directions are views of."""

    @abstractmethod
    def undo_weights(self, step: int) -> tuple[Record, Outcome]:
        """Weights back to before ``step``, and the adjoint of its update. Returns the step's record, and an outcome with the hash
        of the weights."""

    @abstractmethod
    def undo_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> Outcome:
        """States back to before ``step``, and the rest of its adjoint.

        Args:
            step: the one that :meth:`undo_weights` undid.
            record: what that returned.
            gradients: of the loss at the weights before the step, one per weight of the problem.
            into: gets what their derivatives are to be multiplied by, at the members' places.
        """

    @abstractmethod
    def add(self, products: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> None:
        """What flows through the gradient.

        Args:
            products: the directions times its derivatives, one per weight of the problem.
            vectors: of all groups: a product may lie inside of one.
        """

    @abstractmethod
    def finish(self) -> Tensor:
        """The gradient by the weights before the first step."""

    def value(self, i: int, slot: int, sigma: float) -> Tensor:
        """What a slot of the ``i``-th tensor stands for, flat."""
        return self.group.state.value(i, slot, self.aw.dtype, sigma)

    def attached(self, i: int, step: int) -> SimpleNamespace:
        """The rule's settings of a tensor, flat where there is a value per weight, with a leaf for each that is learned so."""
        h = self.group.step_settings.h(i, step)
        for name, setting in self.group.settings[i].items():
            if setting.elementwise is not None and setting.source is not None:
                setattr(h, name, setting.elementwise.detach().to(self.aw.dtype).requires_grad_())
        return h

    def add_to_totals(self, i: int, step: int, by_settings: dict[str, Tensor]) -> None:
        """One step's derivatives by the settings of the ``i``-th tensor."""
        for name, values in by_settings.items():
            setting = self.group.settings[i][name]
            if setting.elementwise is not None:
                self.group.add_elements(setting, i, self.totals, values)
            else:
                setting.accumulate(self.totals.sources, step, values)


class ProgramPullBack(PullBack):
    """In the kernels that undo the steps. The products, and the decays of the states, enter the vectors when the step before is
    undone."""

    def __init__(self, problem: Problem, group: ReversibleGroup, cotangents: Sequence[Tensor | None], totals: Cotangents) -> None:
        super().__init__(problem, group, cotangents, totals)
        self.sums = StepSums(group, problem.rule, problem.steps)
        self._none = torch.empty(0, dtype=self.aw.dtype, device=group.device)
        self._products: list[Tensor | None] = [None] * len(group.members)
        self._carries = torch.ones(len(group.members), len(self.az), dtype=torch.float64)
        self._carried: NDArray[np.float64] | None = None  # the factors that they are
        self._direction: Tensor | None = None  # where directions are not a state's vector as it is
        self._first_state = [group.view(self.az[0], i) for i in range(len(group.members))]
        most = max(sum(self.sums.wanted_before), sum(self.sums.wanted_after))
        self._partials = torch.empty(most * group.state.skipped.numel(), dtype=torch.float64, device=group.device)
        learned = [any(s.elementwise is not None and s.source is not None for s in own.values()) for own in group.settings]
        self._learned_per_weight = [i for i, any_of_it in enumerate(learned) if any_of_it]

    @property
    def vectors(self) -> list[Tensor]:
        return [self.aw, *self.az, *([] if self._direction is None else [self._direction])]

    def undo_weights(self, step: int) -> tuple[Record, Outcome]:
        group, state = self.group, self.group.state
        record = group.pop_record(step)
        for i in self._learned_per_weight:
            self._pull_update(i, step, record)
        moves = state.moves
        assert isinstance(moves, ProgramMoves)
        words = moves.words()
        products = [self._none if product is None else product for product in self._products]
        ops.undo_weights_adjoint(
            *moves.without_gradients(record),
            record.hash_before is not None,
            words,
            self.aw,
            self.az,
            products,
            self._carries,
            self.sums.wanted_before,
            self._partials,
            self.sums.before_gradient,
        )
        self._products = [None] * len(group.members)
        if step == 0:
            state.restore_initial()  # the first gradient was taken there, not at the rounded weights
        return record, Outcome(words, len(state.sizes))

    def undo_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> Outcome:
        group, state = self.group, self.group.state
        own = [gradients[m] for m in group.members]
        moves = state.moves
        assert isinstance(moves, ProgramMoves)
        words = moves.words()
        directions = self._directions(record, into)
        ops.undo_states_adjoint(
            *moves.with_gradients(record, own),
            state.skipped,
            record.hash_before is not None,
            words,
            self.aw,
            self.az,
            directions,
            torch.from_numpy(state.scales.sigma()[:, :-1].copy()),  # those before the step: the record is popped
            self.sums.wanted_after,
            self._partials,
            self.sums.after_gradient,
        )
        state.scales.state = record.scales
        for i in self._learned_per_weight:
            self._pull_increments(i, step, record, own[i])
        self.sums.close_row(step, self.totals)
        if record.given.factors is not self._carried:
            self._carried = record.given.factors
            factors = np.broadcast_to(self._carried[..., :-1], self._carries.shape)
            self._carries = torch.from_numpy(factors.astype(np.float64))
        return Outcome(words, len(state.sizes))

    def add(self, products: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> None:
        own = apart_from(vectors, [products[m] for m in self.group.members])
        self._products = [self._dense(i, product) for i, product in enumerate(own)]

    def finish(self) -> Tensor:
        for i, product in enumerate(self._products):
            if product is not None:
                self.group.view(self.aw, i).add_(product)
        self._products = [None] * len(self._products)
        return self.aw

    def _directions(self, record: Record, into: list[Tensor]) -> list[Tensor]:
        """Where the kernels write a tensor's direction; empty where it is the first state's vector as it is."""
        group, settings = self.group, record.given.settings
        written = [self._none] * len(group.members)
        as_it_is = [self.rule.direction_is_state(h) for h in settings]
        for i, m in enumerate(group.members):
            if as_it_is[i if len(settings) > 1 else 0]:
                into[m] = self._first_state[i]
                continue
            if self._direction is None:
                self._direction = group.vector()
            written[i] = group.state.part(i, self._direction)
            into[m] = group.view(self._direction, i)
        return written

    def _pull_update(self, i: int, step: int, record: Record) -> None:
        """Settings with a value per weight in the update of the ``i``-th tensor, from the rule itself."""
        group, state = self.group, self.group.state
        product = self._products[i]
        if product is not None:
            group.view(self.aw, i).add_(product)
            self._products[i] = None
        sigmas = record.numbers[i].tolist()
        z = {name: self.value(i, k, sigmas[k]) for k, name in enumerate(self.rule.states)}
        w = self.value(i, -1, sigmas[len(z)])
        h = self.attached(i, step)
        self.add_to_totals(i, step, pull_update(self.rule, h, step, w, z, state.part(i, self.aw)).settings)

    def _pull_increments(self, i: int, step: int, record: Record, gradient: Tensor) -> None:
        """The same of the increments."""
        state, sigmas = self.group.state, record.numbers[i].tolist()
        z = {name: self.value(i, k, state.sigma(i, k)) for k, name in enumerate(self.rule.states)}
        w = self.value(i, -1, sigmas[len(z)])
        flat = gradient.detach().as_strided((gradient.numel(),), (1,)).to(self.aw.dtype)
        half = Halfway(self.rule, self.attached(i, step), step, flat, w, z)
        pulled = half.pull({name: state.part(i, vector) for name, vector in zip(z, self.az, strict=True)})
        self.add_to_totals(i, step, pulled.settings)

    def _dense(self, i: int, product: Tensor | None) -> Tensor | None:
        """As the kernels need it: in its weight's memory order."""
        weight = self.group.weights[i]
        if product is not None and product.stride() != weight.stride():
            product = torch.empty_like(weight, requires_grad=False).copy_(product)
        return product
