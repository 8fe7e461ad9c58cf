"""The drop-in optimizers."""

from reversible_hypergrad.optim.sgd import ReversibleSGD
from reversible_hypergrad.optim.traced import ReversibleTracedSGD

__all__ = ["ReversibleSGD", "ReversibleTracedSGD"]
