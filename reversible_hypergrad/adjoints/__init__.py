"""Memory strategies of a differentiable training run: one file each, behind one small interface."""

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.problem import Cotangents, Evaluation, Gradient, Problem, Report, Setting, Settings
from reversible_hypergrad.adjoints.reversible import Reversible

__all__ = ["Adjoint", "Cotangents", "Evaluation", "Gradient", "Problem", "Report", "Reversible", "Run", "Setting", "Settings"]
