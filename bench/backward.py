"""A step taken, and undone: alone, with its adjoint in the same kernels, or with the adjoint in torch's operations."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from reversible_hypergrad.reversible.bucket import Bucket, Coefficients, Record
from reversible_hypergrad.reversible.pull_back import BucketAdjoint, Wanted

__all__ = ["BYTES", "Backward"]

LR = 1e-3
MOMENTUM = Fraction(9, 10)
WANTED = Wanted(lr=True, weight_decay=True, momentum=True)

# Bytes per float32 weight that must move, as in bench/sgd_step.py. Before the gradient: V and aw read, X and av read and written,
# the weight written. After it: gradient, product and X read, V, accumulators, aw and av read and written.
BYTES = {
    "weights back 32": 4 + 4 + 8 + 8 + 4,
    "weights back 64": 8 + 4 + 16 + 8 + 4,
    "velocity back 32": 4 + 4 + 4 + 8 + 1 + 8 + 8,
    "velocity back 64": 4 + 4 + 8 + 16 + 2 + 8 + 8,
}


class Backward:
    """A bucket, moved without waiting, every state hashed. Learning rate, weight decay and momentum get gradients; the gradients
    stand for the second derivatives' products, too."""

    def __init__(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], state_bits: int, weight_decay: float = 0.0
    ) -> None:
        self.weight_decay = weight_decay
        self.gradients = list(gradients)
        self.bucket = bucket = Bucket(weights, [f"weights[{i}]" for i in range(len(weights))], state_bits)
        self.coefficients = (Coefficients.of(bucket.format, lr=LR, weight_decay=weight_decay, dampening=0.0),)
        self.records: list[Record] = []
        aw, av = (torch.zeros(len(bucket.x), device=bucket.x.device) for _ in range(2))
        aw.normal_()
        self.vectors = BucketAdjoint(bucket, aw, av, WANTED)
        self.sums = torch.zeros(3, len(weights), dtype=torch.float64, device=aw.device)
        self.step()  # so that undoing never dissolves the state

    def step(self) -> None:
        record, _ = self.bucket.step(self.gradients, MOMENTUM, self.coefficients, None, True)
        self.records.append(record)

    def undo(self) -> None:
        record = self.records.pop()
        self.bucket.move_weights(record, back=True, with_hash=True)
        self.bucket.undo_velocity(record, self.gradients, True)

    def back(self) -> None:
        self.weights_back()
        self.velocity_back()

    def weights_back(self) -> None:
        self.vectors.undo_weights(self.records[-1], True, self.sums[:1])

    def velocity_back(self) -> None:
        record, settings = self.records.pop(), (1.0, self.weight_decay)
        self.vectors.undo_velocity(record, self.gradients, True, self.gradients, settings, self.sums[1:3])

    def back_in_torch(self) -> None:
        bucket, aw, av = self.bucket, self.vectors.aw, self.vectors.av
        record = self.records.pop()
        self.sums[0, 0] -= torch.dot(aw, self._velocity())
        av.add_(aw, alpha=-LR)
        bucket.move_weights(record, back=True, with_hash=True)
        bucket.undo_velocity(record, self.gradients, True)
        self.sums[2, 0] += torch.dot(av, self._velocity())
        for i, product in enumerate(self.gradients):
            aw.as_strided(product.shape, product.stride(), bucket.offsets[i]).add_(product)
        weights = bucket.x.to(aw.dtype).mul_(2.0**-bucket.format.weight_fraction_bits)
        self.sums[1, 0] += torch.dot(av, weights)
        if self.weight_decay:
            aw.add_(av, alpha=self.weight_decay)
        av.mul_(float(MOMENTUM))

    def _velocity(self) -> Tensor:
        bucket = self.bucket
        return bucket.v.to(self.vectors.aw.dtype).mul_(2.0**-bucket.format.velocity_fraction_bits)
