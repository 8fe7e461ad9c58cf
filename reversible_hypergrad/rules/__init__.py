"""Optimizers, each a few formulas, from which training, hypergradients and reversal follow."""

from reversible_hypergrad.rules.adam import Adam, AdamW
from reversible_hypergrad.rules.base import Rule, SettingSpec
from reversible_hypergrad.rules.functions import root
from reversible_hypergrad.rules.lamb import LAMB
from reversible_hypergrad.rules.lars import LARS
from reversible_hypergrad.rules.lion import Lion
from reversible_hypergrad.rules.muon import Muon
from reversible_hypergrad.rules.per_parameter import PerParameter
from reversible_hypergrad.rules.radam import RAdam
from reversible_hypergrad.rules.rmsprop import RMSprop
from reversible_hypergrad.rules.sgd import SGD
from reversible_hypergrad.rules.traced import TracedSGD

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Muon",
    "PerParameter",
    "RAdam",
    "RMSprop",
    "Rule",
    "SettingSpec",
    "TracedSGD",
    "root",
]
