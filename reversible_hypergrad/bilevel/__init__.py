"""Bilevel problems: inner runs whose results an outer loop improves by hypergradients."""

from reversible_hypergrad.bilevel.compare import Comparison, ComparisonRow, compare
from reversible_hypergrad.bilevel.estimators import (
    Estimate,
    Estimator,
    EvoGrad,
    FirstOrder,
    GeneralizedGreedy,
    HyperDistill,
    OneStep,
    RealTime,
    WholeRun,
    Windowed,
    as_estimator,
)
from reversible_hypergrad.bilevel.guard import Guard
from reversible_hypergrad.bilevel.loop import Bilevel
from reversible_hypergrad.bilevel.result import Result
from reversible_hypergrad.bilevel.sets import Box, L1Ball, Set, Simplex
from reversible_hypergrad.bilevel.stacked import Stacked
from reversible_hypergrad.bilevel.task import Task, TaskOf

__all__ = [
    "Bilevel",
    "Box",
    "Comparison",
    "ComparisonRow",
    "Estimate",
    "Estimator",
    "EvoGrad",
    "FirstOrder",
    "GeneralizedGreedy",
    "Guard",
    "HyperDistill",
    "L1Ball",
    "OneStep",
    "RealTime",
    "Result",
    "Set",
    "Simplex",
    "Stacked",
    "Task",
    "TaskOf",
    "WholeRun",
    "Windowed",
    "as_estimator",
    "compare",
]
