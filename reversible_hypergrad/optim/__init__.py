"""The drop-in optimizers."""

from reversible_hypergrad.optim.adam import ReversibleAdam, ReversibleAdamW
from reversible_hypergrad.optim.lion import ReversibleLion
from reversible_hypergrad.optim.muon import ReversibleMuon
from reversible_hypergrad.optim.radam import ReversibleRAdam
from reversible_hypergrad.optim.rmsprop import ReversibleRMSprop
from reversible_hypergrad.optim.sgd import ReversibleSGD
from reversible_hypergrad.optim.traced import ReversibleTracedSGD

__all__ = [
    "ReversibleAdam",
    "ReversibleAdamW",
    "ReversibleLion",
    "ReversibleMuon",
    "ReversibleRAdam",
    "ReversibleRMSprop",
    "ReversibleSGD",
    "ReversibleTracedSGD",
]
