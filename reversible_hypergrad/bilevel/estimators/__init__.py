"""Hypergradients of an inner problem, by siblings that see more or less of it."""

from typing import Any

from reversible_hypergrad.adjoints import Adjoint
from reversible_hypergrad.bilevel.estimators.base import Estimate, Estimator
from reversible_hypergrad.bilevel.estimators.evograd import EvoGrad
from reversible_hypergrad.bilevel.estimators.first_order import FirstOrder
from reversible_hypergrad.bilevel.estimators.greedy import GeneralizedGreedy
from reversible_hypergrad.bilevel.estimators.hyperdistill import HyperDistill
from reversible_hypergrad.bilevel.estimators.real_time import RealTime
from reversible_hypergrad.bilevel.estimators.whole_run import WholeRun
from reversible_hypergrad.bilevel.estimators.windowed import OneStep, Windowed

__all__ = [
    "Estimate",
    "Estimator",
    "EvoGrad",
    "FirstOrder",
    "GeneralizedGreedy",
    "HyperDistill",
    "OneStep",
    "RealTime",
    "WholeRun",
    "Windowed",
    "as_estimator",
]


def as_estimator(given: Any) -> Estimator:
    """Strategies of :func:`train` stand for estimators of whole runs.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(given, Estimator):
        return given
    if isinstance(given, Adjoint):
        return WholeRun(given)
    raise TypeError(
        f"estimator: expected a strategy such as rh.Reversible(), or an estimator such as rh.OneStep(), got {given!r}"
    )
