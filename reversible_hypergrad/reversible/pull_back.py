"""The adjoint of a bucket's steps, in the two kernels that undo them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reversible_hypergrad._ops import ops
from reversible_hypergrad.reversible.bucket import Bucket, Record
from reversible_hypergrad.reversible.outcome import Outcome

__all__ = ["BucketAdjoint", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """Which inner products of a step are asked for; see csrc/core/adjoint.h."""

    lr: bool = False  # <aw, v'>
    weight_decay: bool = False  # <u, w>
    momentum: bool = False  # <av, v>
    dampening: bool = False  # <av, g + wd*w>

    @property
    def after_gradient(self) -> tuple[bool, bool, bool]:
        """Those that the second phase of undoing gives, in its order."""
        return self.weight_decay, self.momentum, self.dampening


class BucketAdjoint:
    """``aw`` and ``av``, the gradients by a bucket's weights and velocities, and their way back through its steps.

    Each phase does what the bucket's own would do, with the same bits and the same outcome, and takes the vectors along.
    Inner products are float64, one per tensor of the bucket, with the same bits on every device.

    Args:
        aw, av: contiguous, laid out as the state; float64 if the weights are, else float32.
        wanted: the same for all steps.
    """

    def __init__(self, bucket: Bucket, aw: Tensor, av: Tensor, wanted: Wanted) -> None:
        self.bucket, self.aw, self.av, self.wanted = bucket, aw, av, wanted
        most = max(int(wanted.lr), sum(wanted.after_gradient))
        self._partials = torch.empty(most * bucket.skipped.numel(), dtype=torch.float64, device=aw.device)
        self._no_product = torch.empty(0, device=aw.device)

    def undo_weights(self, record: Record, with_hash: bool, sums: Tensor) -> Outcome:
        """As :meth:`Bucket.move_weights` back; ``av -= lr*aw``. ``sums`` gets <aw, v'>, if wanted, else it is empty."""
        bucket, words = self.bucket, self.bucket.words()
        state = bucket.x, bucket.v, bucket.accumulators
        numbers, elements = bucket.numbers(record), bucket.lr_elements(record)
        vectors = self.aw, self.av, self._partials, sums
        ops.sgd_undo_weights_adjoint(bucket.weights, record.active, *state, numbers, with_hash, words, elements, *vectors)
        return Outcome(words)

    def undo_velocity(
        self,
        record: Record,
        gradients: Sequence[Tensor | None],
        with_hash: bool,
        products: Sequence[Tensor | None],
        settings: Sequence[float],
        sums: Tensor,
    ) -> Outcome:
        """As :meth:`Bucket.undo_velocity`; ``aw += product + decay*share*av``, ``av *= momentum``.

        Args:
            products: one per weight, with its dtype and strides; None stands for zero.
            settings: (share, decay) of all weights, or of each, one after the other; share is 1 - dampening.
            sums: get the other wanted inner products, those of one kind after the other.
        """
        bucket, words = self.bucket, self.bucket.words()
        given = [self._no_product if product is None else product for product in products]
        arguments = bucket.arguments(record, gradients)
        wanted = self.wanted.after_gradient
        vectors = self.aw, self.av, given, settings, wanted, self._partials, sums
        ops.sgd_undo_velocity_adjoint(*arguments, bucket.skipped, with_hash, words, *vectors)
        bucket.bound = record.bound
        return Outcome(words)
