"""Memory strategies of a differentiable training run: one file each, behind one small interface."""

from reversible_hypergrad.adjoints.base import Adjoint, End, Run
from reversible_hypergrad.adjoints.checkpoint import Checkpoint
from reversible_hypergrad.adjoints.conjugate_gradient import ConjugateGradient
from reversible_hypergrad.adjoints.drmad import DrMAD
from reversible_hypergrad.adjoints.forward_mode import ForwardMode
from reversible_hypergrad.adjoints.neumann import Neumann
from reversible_hypergrad.adjoints.recursive_checkpoint import RecursiveCheckpoint
from reversible_hypergrad.adjoints.reversible import Reversible
from reversible_hypergrad.adjoints.snapshots import Snapshots
from reversible_hypergrad.adjoints.truncated import Truncated
from reversible_hypergrad.adjoints.unroll import Unroll

__all__ = [
    "Adjoint",
    "Checkpoint",
    "ConjugateGradient",
    "DrMAD",
    "End",
    "ForwardMode",
    "Neumann",
    "RecursiveCheckpoint",
    "Reversible",
    "Run",
    "Snapshots",
    "Truncated",
    "Unroll",
]
