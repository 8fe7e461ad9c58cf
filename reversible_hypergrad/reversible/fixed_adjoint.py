"""The adjoint of a reversible run's steps, beside their undoing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents, Problem
from reversible_hypergrad.reversible.bucket import Outcome, Record
from reversible_hypergrad.reversible.fixed import FixedGroup
from reversible_hypergrad.reversible.pull_back import BucketAdjoint
from reversible_hypergrad.reversible.step_sums import StepSums

__all__ = ["FixedAdjoint", "apart_from"]


class FixedAdjoint:
    """``aw`` and ``av``, the gradients by a group's weights and velocities, on their way back through its steps.

    The kernels that undo a step do all that is alike for a tensor's weights. What belongs to a setting with a value per weight
    is done in torch's operations around them. In turn, for every step: :meth:`undo_weights`, :meth:`directions`,
    :meth:`undo_velocity`.

    Args:
        cotangents: the gradients by the trained weights, one per weight of the problem; None stands for zero.
        totals: get the derivatives by settings.
    """

    def __init__(self, problem: Problem, group: FixedGroup, cotangents: Sequence[Tensor | None], totals: Cotangents) -> None:
        self.group, self.totals = group, totals
        self.sums = StepSums(group, problem.steps)
        self.aw, self.av = group.gather(cotangents), group.vector()
        self._u = self.av
        self._vectors = BucketAdjoint(group.bucket, self.aw, self.av, self.sums.wanted)

    def undo_weights(self, step: int) -> tuple[Record, Outcome]:
        """Weights back to before ``step``, and the adjoint of its last line. Returns the step's record, and an outcome with the
        hash of the weights."""
        group = self.group
        for part, setting, i in group.lr_spans:
            if setting.elementwise is not None and setting.source is not None:
                group.add_elements(setting, i, self.totals, -self.aw[part] * group.velocity_of(i))
        record = group.pop_record(step)
        outcome = self._vectors.undo_weights(record, record.hash_before is not None, self.sums.before_gradient)
        if step == 0:
            group.bucket.restore_initial()  # the first gradient was taken there, not at the rounded weights
        return record, outcome

    def directions(self, step: int, into: list[Tensor]) -> None:
        """What the second derivatives are to be multiplied by, to the members' places in ``into``."""
        self._u = self.group.directions(step, self.av)
        self.group.scatter(self._u, into)

    def undo_velocity(self, step: int, record: Record, gradients: Sequence[Tensor], products: Sequence[Tensor | None]) -> Outcome:
        """Velocities back to before ``step``, and the rest of its adjoint.

        Args:
            gradients, products: one per weight of the problem; no product may share memory with ``av``.
        """
        group = self.group
        for part, setting, i in group.decay_spans:
            if setting.elementwise is not None:
                if setting.source is not None:
                    group.add_elements(setting, i, self.totals, self._u[part] * group.weights_of(i))
                self.aw[part].addcmul_(self._u[part], setting.elementwise.to(self.aw.dtype))
        outcome = self._vectors.undo_velocity(
            record,
            group.totals(gradients),
            record.hash_before is not None,
            [self._dense(i, products[m]) for i, m in enumerate(group.members)],
            group.shares_and_decays(step),
            self.sums.after_gradient,
        )
        self.sums.close_row(step, self.totals)
        self._u = self.av
        return outcome

    def _dense(self, i: int, product: Tensor | None) -> Tensor | None:
        """As the kernels need it: in its weight's memory order."""
        weight = self.group.weights[i]
        if product is not None and product.stride() != weight.stride():
            product = torch.empty_like(weight, requires_grad=False).copy_(product)
        return product


def apart_from(vectors: Sequence[Tensor], products: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The products, copied where they lie inside one of ``vectors``: a loss may hand a direction back as it is, and the vector
    that it is a part of is about to change."""
    spans = [(vector.data_ptr(), vector.data_ptr() + vector.nbytes) for vector in vectors]
    inside = [p is not None and any(begin <= p.data_ptr() < end for begin, end in spans) for p in products]
    return [p.clone() if p is not None and copy else p for p, copy in zip(products, inside, strict=True)]
