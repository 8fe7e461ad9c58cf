"""The drop-in optimizer."""

from reversible_hypergrad.optim.reversible_sgd import ReversibleSGD

__all__ = ["ReversibleSGD"]
