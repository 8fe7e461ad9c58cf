"""The adjoint of a float run's steps: the rule's own functions, transposed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.float_span import FloatSpan
from reversible_hypergrad.adjoints.floats import FloatGroup
from reversible_hypergrad.problem.problem import Cotangents, Downstream
from reversible_hypergrad.rules.linear import Before
from reversible_hypergrad.rules.step import Halfway, pull_update

__all__ = ["FloatAdjoint"]


class FloatAdjoint:
    """``aw`` and ``az``, the gradients by a group's weights and states, on their way back through its steps.

    In turn, for every step, with the group as it was before it: :meth:`pull`, then :meth:`add`.

    Args:
        downstream: the gradients of one loss by what the run gave out.
        totals: get the derivatives by settings.
    """

    def __init__(self, group: FloatGroup, downstream: Downstream, totals: Cotangents) -> None:
        self.group, self.totals = group, totals
        self.aw = group.gather(downstream.weights)
        count = len(totals.states)
        self.az = {name: group.gather([downstream.states_of(i).get(name) for i in range(count)]) for name in group.rule.states}
        self._parts = [
            (span, span.of(self.aw), {name: span.of(vector) for name, vector in self.az.items()}) for span in group.spans
        ]

    def pull(self, step: int, gradients: Sequence[Tensor], into: list[Tensor]) -> None:
        """Back through ``step``, all but what flows through the loss's gradient.

        Args:
            gradients: of the loss, one per weight of the problem.
            into: gets what their derivatives are to be multiplied by, at the members' places.
        """
        group = self.group
        if not all(span.linear is not None and not span.learned for span in group.spans):
            group.gather_gradient(gradients)
        for span, aw, az in self._parts:
            pull = self._pull if span.linear is None else self._pull_in_numbers
            span.scatter(pull(span, step, aw, az), into)

    def _before(self, span: FloatSpan) -> Before:
        group = self.group
        g, w = (span.of(vector).to(group.dtype) for vector in (group.g, group.w))
        return Before(g, w, {name: span.of(state).to(group.dtype) for name, state in group.z.items()})

    def _pull_in_numbers(self, span: FloatSpan, step: int, aw: Tensor, az: dict[str, Tensor]) -> Tensor:
        assert span.linear is not None
        direction, by_settings = span.linear.pull(step, aw, az, self._before(span) if span.learned else None)
        span.add_to(self.totals, step, by_settings)
        return direction

    def _pull(self, span: FloatSpan, step: int, aw: Tensor, az: dict[str, Tensor]) -> Tensor:
        group, h = self.group, span.attached(step)
        before = self._before(span)
        half = Halfway(group.rule, h, step, *before)
        later = pull_update(group.rule, h, step, before.w, half.z, aw, half.signs)
        for name, by in later.z.items():
            if by is not None:
                az[name].add_(by)
        earlier = half.pull(az)
        if later.w is not aw:
            aw.copy_(later.w)
        if earlier.w is not None:
            aw.add_(earlier.w)
        for name, vector in az.items():
            vector.copy_(earlier.z[name])
        for by_settings in (later.settings, earlier.settings):
            span.add_to(self.totals, step, by_settings)
        return torch.zeros_like(aw) if earlier.direction is None else earlier.direction.to(group.dtype)

    def add(self, step: int, products: Sequence[Tensor | None]) -> None:
        """What flows through the gradient: the directions times its derivatives, one per weight of the problem."""
        for i, m in enumerate(self.group.members):
            product = products[m]
            if product is not None:
                self.group.view(self.aw, i).add_(product)
        for span, _, az in self._parts:
            if span.linear is not None:
                span.linear.decay_back(step, az)
