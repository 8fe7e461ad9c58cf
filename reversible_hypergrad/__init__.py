"""Exact hypergradients through training, by SGD with momentum whose every step can be undone bit for bit."""

from reversible_hypergrad import core
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.optim import ReversibleSGD

__all__ = ["ReversalError", "ReversibleSGD", "core"]
__version__ = "0.1.0"
