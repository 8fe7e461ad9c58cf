"""The adjoint of a reversible run's steps: its interface, and the kernels that undo them along with it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad._ops import ops
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.reversible.group import ReversibleGroup
from reversible_hypergrad.reversible.moves import ProgramMoves
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.record import Record, StepNumbers
from reversible_hypergrad.reversible.step_sums import StepSums, apart_from
from reversible_hypergrad.rules.step import Halfway, pull_update

__all__ = ["ProgramPullBack", "PullBack"]


class PullBack(ABC):
    """``aw`` and ``az``, the gradients by a group's weights and states, on their way back through its steps.

    In turn, for every step: :meth:`undo_weights`, then, with the gradient at the weights that stand there,
    :meth:`undo_states`, then :meth:`add` with the directions' products. Of several losses, one undoes the steps, and the others
    have :meth:`pull_weights` and :meth:`pull_states` called in place of these, right after it.

    Args:
        problem: the run.
        group: its parameters of one device.
        downstream: the gradients of one loss by what the run gave out.
        totals: get the derivatives by settings.
    """

    def __init__(self, problem: Problem, group: ReversibleGroup, downstream: Downstream, totals: Cotangents) -> None:
        self.group, self.totals, self.rule = group, totals, problem.rule
        self.aw = group.gather(downstream.weights)
        count = len(problem.weights)
        self.az = [group.gather([downstream.states_of(i).get(name) for i in range(count)]) for name in problem.rule.states]

    @property
    @abstractmethod
    def vectors(self) -> list[Tensor]:
        """What directions are views of."""

    @abstractmethod
    def undo_weights(self, step: int) -> tuple[Record, Outcome]:
        """Weights back to before ``step``, and the adjoint of its update. Returns the step's record, and an outcome with the hash
        of the weights."""

    def known_directions(self, into: list[Tensor]) -> bool:
        """Whether what :meth:`undo_states` will write is known once the weights are undone; if so it is ``into`` already."""
        return False

    @abstractmethod
    def pull_weights(self, step: int, record: Record) -> None:
        """The adjoint of the update alone, where another loss's :meth:`undo_weights` has just returned ``record``."""

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
    def pull_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> None:
        """The rest of the adjoint alone, after another loss's :meth:`undo_states` with the same arguments but ``into``."""

    @abstractmethod
    def add(self, products: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> None:
        """What flows through the gradient.

        Args:
            products: the directions times its derivatives, one per weight of the problem.
            vectors: of all groups: a product may lie inside of one.
        """

    @abstractmethod
    def finish(self) -> None:
        """Makes ``aw`` and ``az`` the gradients by weights and states before the first step."""

    def views(self, into: list[Tensor]) -> None:
        """Those of ``aw`` to the members' places in ``into``."""
        self.group.scatter(self.aw, into)

    def by_states(self) -> list[dict[str, Tensor]]:
        """Views of ``az``, per member."""
        names = list(self.rule.states)
        return [
            {name: self.group.view(vector, i) for name, vector in zip(names, self.az, strict=True)}
            for i in range(len(self.group.members))
        ]

    def value(self, i: int, slot: int, sigma: float) -> Tensor:
        """What a slot of the ``i``-th tensor stands for, flat."""
        return self.group.state.value(i, slot, self.aw.dtype, sigma)

    def attached(self, i: int, step: int, numbers: bool) -> SimpleNamespace:
        """The rule's settings of a tensor, flat where there is a value per weight. Those that are learned and count in this step
        are leaves, if they have one value per weight, and

        Args:
            numbers: whether if they are one number, too.
        """
        h, settings = self.group.step_settings.h(i, step), self.group.settings[i]
        for name, setting in settings.items():
            if setting.source is None or self.rule.settings[name].set_aside(settings, step):
                continue
            if setting.elementwise is not None:
                setattr(h, name, setting.elementwise.detach().to(self.aw.dtype).requires_grad_())
            elif numbers:
                setattr(h, name, self.aw.new_tensor(getattr(h, name), dtype=torch.float64).requires_grad_())
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

    def __init__(self, problem: Problem, group: ReversibleGroup, downstream: Downstream, totals: Cotangents) -> None:
        super().__init__(problem, group, downstream, totals)
        # Where several settings meet in one number of the program and one of them has a value per weight, an inner product does
        # not tell their derivatives.
        by_functions = [
            i
            for i, own in enumerate(group.settings)
            if any(s.source is not None for s in own.values())
            and any(s.elementwise is not None and (s.source is not None or not problem.rule.linear) for s in own.values())
        ]
        self._by_functions = by_functions
        self._mixed = [] if problem.rule.linear else by_functions
        self.sums = StepSums(group, problem.rule, problem.steps, group.step_settings.real, self._mixed)
        self._none = torch.empty(0, dtype=self.aw.dtype, device=group.device)
        self._products: list[Tensor | None] = [None] * len(group.members)
        decays_weight = any(by == "weight" for by, _ in problem.rule.sums_before)
        self._carries = _Carries(len(group.members), len(self.az), decays_weight)
        self._is_state = False  # whether the directions of the present step are the first state's vector as it is
        self._direction: Tensor | None = None  # where directions are not a state's vector as it is
        self._first_state = [group.view(self.az[0], i) for i in range(len(group.members))]
        most = max(sum(self.sums.wanted_before), sum(self.sums.wanted_after))
        self._partials = torch.empty(most * group.state.skipped.numel(), dtype=torch.float64, device=group.device)

    @property
    def vectors(self) -> list[Tensor]:
        return [self.aw, *self.az, *([] if self._direction is None else [self._direction])]

    def undo_weights(self, step: int) -> tuple[Record, Outcome]:
        group = self.group
        record = group.pop_record(step)
        outcome = self._weights(step, record, moved=False)
        if step == group.steps.start:
            group.state.restore_initial(
                range(len(group.members))
            )  # the first gradient was taken there, not at the rounded weights
        return record, outcome

    def known_directions(self, into: list[Tensor]) -> bool:
        if not self._is_state:
            return False
        for i, m in enumerate(self.group.members):
            into[m] = self._first_state[i]
        return True

    def pull_weights(self, step: int, record: Record) -> None:
        self._weights(step, record, moved=True)

    def _weights(self, step: int, record: Record, moved: bool) -> Outcome:
        group, state = self.group, self.group.state
        self._is_state = all(self.rule.direction_is_state(h) for h in record.given.settings)
        for i in self._by_functions:
            self._pull_update(i, step, record)
        moves = state.moves
        assert isinstance(moves, ProgramMoves)
        words = moves.words()
        products = [self._none if product is None else product for product in self._products]
        ops.undo_weights_adjoint(
            *moves.without_gradients(record),
            moved,
            record.hash_before is not None,
            words,
            self.aw,
            self.az,
            products,
            self._carries.at(record.given),
            self.sums.wanted_before,
            self._partials,
            self.sums.before_gradient,
        )
        self._products = [None] * len(group.members)
        return Outcome(words, len(state.sizes))

    def undo_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> Outcome:
        return self._states(step, record, gradients, into, moved=False)

    def pull_states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor]) -> None:
        self._states(step, record, gradients, into, moved=True)

    def _states(self, step: int, record: Record, gradients: Sequence[Tensor], into: list[Tensor], moved: bool) -> Outcome:
        group, state = self.group, self.group.state
        own = [gradients[m] for m in group.members]
        moves = state.moves
        assert isinstance(moves, ProgramMoves)
        words = moves.words()
        directions = self._directions(record, into)
        ops.undo_states_adjoint(
            *moves.with_gradients(record, own),
            state.skipped,
            moved,
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
        for i in self._by_functions:
            self._pull_increments(i, step, record, own[i])
        self.sums.close_row(step, self.totals)
        self._carries.next(record.given)
        return Outcome(words, len(state.sizes))

    def add(self, products: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> None:
        own = apart_from(vectors, [products[m] for m in self.group.members])
        self._products = [self._dense(i, product) for i, product in enumerate(own)]

    def finish(self) -> None:
        group = self.group
        for i, product in enumerate(self._products):
            if product is not None:
                group.view(self.aw, i).add_(product)
            for k, carry in enumerate(self._carries.of(i)):
                if carry != 1:
                    part = group.state.part(i, self.az[k])
                    part.copy_(part.double() * carry)
        self._products = [None] * len(self._products)

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
        h = self.attached(i, step, i in self._mixed)
        self.add_to_totals(i, step, pull_update(self.rule, h, step, w, z, state.part(i, self.aw)).settings)

    def _pull_increments(self, i: int, step: int, record: Record, gradient: Tensor) -> None:
        """The same of the increments."""
        state, sigmas = self.group.state, record.numbers[i].tolist()
        z = {name: self.value(i, k, state.sigma(i, k)) for k, name in enumerate(self.rule.states)}
        w = self.value(i, -1, sigmas[len(z)])
        flat = gradient.detach().as_strided((gradient.numel(),), (1,)).to(self.aw.dtype)
        half = Halfway(self.rule, self.attached(i, step, i in self._mixed), step, flat, w, z)
        pulled = half.pull({name: state.part(i, vector) for name, vector in zip(z, self.az, strict=True)})
        self.add_to_totals(i, step, pulled.settings)

    def _dense(self, i: int, product: Tensor | None) -> Tensor | None:
        """As the kernels need it: in its weight's memory order."""
        weight = self.group.weights[i]
        if product is not None and product.stride() != weight.stride():
            product = torch.empty_like(weight, requires_grad=False).copy_(product)
        return product


class _Carries:
    """The decays that enter the vectors when a step's weights are undone: of the states in the step undone before, and of the
    weights, if the rule decays them, in this one. In most runs every step's are the same arrays."""

    def __init__(self, tensors: int, states: int, weights: bool) -> None:
        self._tensors, self._weights = tensors, weights
        self._before: NDArray[np.float64] = np.ones((1, states + 1))
        self._known: list[NDArray[np.float64]] = []
        self._table = torch.empty(0)

    def at(self, given: StepNumbers) -> Tensor:
        of = [self._before, given.factors] if self._weights else [self._before]
        if len(of) != len(self._known) or any(one is not other for one, other in zip(of, self._known, strict=True)):
            states = np.broadcast_to(self._before[..., :-1], (self._tensors, self._before.shape[-1] - 1))
            weights = [np.broadcast_to(given.factors[..., -1:], (self._tensors, 1))] if self._weights else []
            self._known, self._table = of, torch.from_numpy(np.ascontiguousarray(np.concatenate([states, *weights], 1)))
        return self._table

    def next(self, given: StepNumbers) -> None:
        self._before = given.factors

    def of(self, i: int) -> list[float]:
        """What is still to be multiplied into the vectors of the ``i``-th tensor's states."""
        carries: list[float] = np.broadcast_to(self._before, (self._tensors, self._before.shape[-1]))[i, :-1].tolist()
        return carries
