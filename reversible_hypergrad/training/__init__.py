"""A whole training run as one differentiable function."""

from reversible_hypergrad.gradients.check import Replayability, check_replayable
from reversible_hypergrad.problem.report import Report
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.rules.sgd import SGD
from reversible_hypergrad.training.hypergradients import hypergradients
from reversible_hypergrad.training.resume import Resume
from reversible_hypergrad.training.train import train
from reversible_hypergrad.training.trained import TrainedWeights
from reversible_hypergrad.training.verify import Verification, verify

__all__ = [
    "SGD",
    "Replayability",
    "Report",
    "Resume",
    "Start",
    "TrainedWeights",
    "Verification",
    "check_replayable",
    "hypergradients",
    "train",
    "verify",
]
