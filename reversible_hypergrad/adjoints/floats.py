"""Plain float weights and states of any rule: what the strategies keep that do not reverse."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.float_span import spans_of
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.reversible.flat import FlatGroup
from reversible_hypergrad.rules.step import count_below_eps, looks_at_states, step_in_place

__all__ = ["FloatGroup", "FloatState", "float_groups", "needs_states"]

_ALIGNMENT = 16  # elements: every part begins where wide loads are fast


class FloatState:
    """One group's weights, and its states where they are needed, before some step."""

    def __init__(self, w: Tensor, z: dict[str, Tensor]) -> None:
        self.w, self.z = w, z


class FloatGroup(FlatGroup):
    """Parameters that share a device, a dtype and a rule. Their weights become views of one vector, ``w``; ``z`` holds one per
    state."""

    def __init__(self, problem: Problem, members: Sequence[int]) -> None:
        offsets = [0]
        for i in members:
            offsets.append(offsets[-1] + -(-problem.weights[i].numel() // _ALIGNMENT) * _ALIGNMENT)
        super().__init__(problem, members, offsets)
        self.rule, self.steps = problem.rule_of(members[0]), problem.steps
        self.w = torch.zeros(offsets[-1], dtype=self.weights[0].dtype, device=self.device)
        for i, weight in enumerate(self.weights):
            view = self.view(self.w, i)
            view.copy_(weight.detach())
            weight.data = view
        self.z = {name: torch.zeros_like(self.w) for name in self.rule.states}
        self.is_fresh = not any(problem.states[i] for i in members)  # whether all states begin at zero
        for i, m in enumerate(members):
            for name, values in problem.states[m].items():
                self.view(self.z[name], i).copy_(values)
        self.g = torch.zeros_like(self.w)  # a step's gradient
        self._gradient_views = [self.view(self.g, i) for i in range(len(members))]
        self.spans = spans_of(self.rule, self, problem.steps)
        self._parts = [
            (span, span.of(self.g), span.of(self.w), {name: span.of(state) for name, state in self.z.items()})
            for span in self.spans
        ]

    def gather_gradient(self, gradients: Sequence[Tensor]) -> None:
        """To ``g``, from one per weight of the problem."""
        torch._foreach_copy_(self._gradient_views, [gradients[m] for m in self.members])

    def step(self, step: int, gradients: Sequence[Tensor]) -> None:
        self.gather_gradient(gradients)
        for span, g, w, z in self._parts:
            if span.linear is not None:
                span.linear.move(step, g, w, z)
            else:
                step_in_place(self.rule, span.h(step), step, g, w, z)

    def weights_below_eps(self) -> int:
        """After the last step."""

        def of_member(i: int) -> dict[str, Tensor]:
            return {name: self.view(state, i) for name, state in self.z.items()}

        return count_below_eps(self.rule, self.settings, self.steps, of_member)

    def state(self, with_states: bool) -> FloatState:
        """A copy."""
        return FloatState(self.w.clone(), {name: state.clone() for name, state in self.z.items()} if with_states else {})

    def states(self) -> list[dict[str, Tensor]]:
        """Copies of the states, per member, in its weight's shape."""
        return [{name: self.view(state, i).clone() for name, state in self.z.items()} for i in range(len(self.members))]

    def load(self, state: FloatState) -> None:
        """Without states they are zero."""
        self.w.copy_(state.w)
        for name, own in self.z.items():
            if name in state.z:
                own.copy_(state.z[name])
            else:
                own.zero_()


def needs_states(problem: Problem) -> bool:
    """Whether the adjoint of a step looks at states: with SGD, where learning rates or momenta get gradients."""
    different = {
        (id(problem.rule_of(i)), *(name for name, x in s.items() if x.source is not None)): i
        for i, s in enumerate(problem.settings)
    }
    return any(looks_at_states(problem.rule_of(i), problem.settings[i]) for i in different.values())


def float_groups(problem: Problem) -> list[FloatGroup]:
    """One per device, dtype and rule."""
    members: dict[tuple[torch.device, torch.dtype, int], list[int]] = {}
    for i, weight in enumerate(problem.weights):
        members.setdefault((weight.device, weight.dtype, id(problem.rule_of(i))), []).append(i)
    return [FloatGroup(problem, m) for m in members.values()]
