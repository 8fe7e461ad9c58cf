"""What can be taken from a run beside its last weights: weights on the way, averages of them, losses."""

from reversible_hypergrad.readouts.averages import ExponentialAverage, UniformAverage
from reversible_hypergrad.readouts.base import Readout
from reversible_hypergrad.readouts.loss_at import LossAt
from reversible_hypergrad.readouts.taken import Readouts
from reversible_hypergrad.readouts.weights_at import WeightsAt

__all__ = ["ExponentialAverage", "LossAt", "Readout", "Readouts", "UniformAverage", "WeightsAt"]
