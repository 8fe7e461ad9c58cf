"""Exact hypergradients through training, by optimizers whose every step can be undone bit for bit."""

from reversible_hypergrad import bilevel, core, datasets
from reversible_hypergrad.adjoints import (
    Checkpoint,
    ConjugateGradient,
    DrMAD,
    ForwardMode,
    Neumann,
    RecursiveCheckpoint,
    Reversible,
    Snapshots,
    Truncated,
    Unroll,
)
from reversible_hypergrad.bilevel import EvoGrad, FirstOrder, GeneralizedGreedy, OneStep, Stacked, Task, Windowed, compare
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.gradients.clip import clip_norm, clip_value
from reversible_hypergrad.optim import (
    ReversibleAdam,
    ReversibleAdamW,
    ReversibleLion,
    ReversibleMuon,
    ReversibleRAdam,
    ReversibleRMSprop,
    ReversibleSGD,
    ReversibleTracedSGD,
)
from reversible_hypergrad.planning import Plan, plan
from reversible_hypergrad.readouts import ExponentialAverage, LossAt, UniformAverage, WeightsAt
from reversible_hypergrad.replay import MicroBatches, ReplayableLoader
from reversible_hypergrad.rules import LAMB, LARS, SGD, Adam, AdamW, Lion, Muon, PerParameter, RAdam, RMSprop, Rule, TracedSGD
from reversible_hypergrad.training import Resume, Start, TrainedWeights, check_replayable, hypergradients, train, verify

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "Checkpoint",
    "ConjugateGradient",
    "DrMAD",
    "EvoGrad",
    "ExponentialAverage",
    "FirstOrder",
    "ForwardMode",
    "GeneralizedGreedy",
    "Lion",
    "LossAt",
    "MicroBatches",
    "Muon",
    "Neumann",
    "OneStep",
    "PerParameter",
    "Plan",
    "RAdam",
    "RMSprop",
    "RecursiveCheckpoint",
    "ReplayableLoader",
    "Resume",
    "ReversalError",
    "Reversible",
    "ReversibleAdam",
    "ReversibleAdamW",
    "ReversibleLion",
    "ReversibleMuon",
    "ReversibleRAdam",
    "ReversibleRMSprop",
    "ReversibleSGD",
    "ReversibleTracedSGD",
    "Rule",
    "Snapshots",
    "Stacked",
    "Start",
    "Task",
    "TracedSGD",
    "TrainedWeights",
    "Truncated",
    "UniformAverage",
    "Unroll",
    "WeightsAt",
    "Windowed",
    "bilevel",
    "check_replayable",
    "clip_norm",
    "clip_value",
    "compare",
    "core",
    "datasets",
    "hypergradients",
    "plan",
    "train",
    "verify",
]
__version__ = "0.1.0"
