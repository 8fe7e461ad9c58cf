"""Memory strategies of a differentiable training run: one file each, behind one small interface."""

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.reversible import Reversible

__all__ = ["Adjoint", "Reversible", "Run"]
