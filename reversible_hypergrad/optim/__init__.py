"""The drop-in optimizers."""

from reversible_hypergrad.optim.sgd import ReversibleSGD

__all__ = ["ReversibleSGD"]
