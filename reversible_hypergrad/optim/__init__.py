"""The drop-in optimizers."""

from reversible_hypergrad.optim.adam import ReversibleAdam, ReversibleAdamW
from reversible_hypergrad.optim.sgd import ReversibleSGD
from reversible_hypergrad.optim.traced import ReversibleTracedSGD

__all__ = ["ReversibleAdam", "ReversibleAdamW", "ReversibleSGD", "ReversibleTracedSGD"]
