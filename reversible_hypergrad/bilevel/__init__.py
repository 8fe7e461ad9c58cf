"""Bilevel problems: inner runs whose results an outer loop improves by hypergradients."""

from reversible_hypergrad.bilevel.compare import Comparison, ComparisonRow, compare
from reversible_hypergrad.bilevel.estimators import (
    Estimate,
    Estimator,
    EvoGrad,
    FirstOrder,
    GeneralizedGreedy,
    OneStep,
    WholeRun,
    Windowed,
    as_estimator,
)
from reversible_hypergrad.bilevel.stacked import Stacked
from reversible_hypergrad.bilevel.task import Task, TaskOf

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Estimate",
    "Estimator",
    "EvoGrad",
    "FirstOrder",
    "GeneralizedGreedy",
    "OneStep",
    "Stacked",
    "Task",
    "TaskOf",
    "WholeRun",
    "Windowed",
    "as_estimator",
    "compare",
]
