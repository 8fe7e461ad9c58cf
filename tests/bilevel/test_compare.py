"""rh.compare: angles and lengths beside the exact hypergradient."""

from __future__ import annotations

import math

import pytest
import torch
from bilevel_problem import STEPS, Problem

import reversible_hypergrad as rh


def test_cosine_and_ratio():
    problem = Problem()
    estimators = [rh.Reversible(), rh.OneStep(), rh.Windowed(5), rh.Truncated(5)]
    found = rh.compare(problem.task, [problem.l2, problem.lr], estimators, horizons=[5, STEPS])
    assert [row.horizon for row in found.rows] == [5] * 5 + [STEPS] * 5
    rows = {(row.estimator, row.horizon): row for row in found.rows}
    for horizon in (5, STEPS):
        exact = rows[repr(rh.Snapshots()), horizon]
        assert exact.cosine == pytest.approx(1)
        assert exact.indirect_ratio == pytest.approx(1)
        assert rows[repr(rh.Reversible()), horizon].indirect_cosine == pytest.approx(1, abs=1e-9)
    assert rows[repr(rh.Windowed(5)), 5].indirect_cosine == pytest.approx(1)
    assert rows[repr(rh.Truncated(5)), 5].indirect_ratio == pytest.approx(1)
    for name in (rh.OneStep(), rh.Windowed(5), rh.Truncated(5)):
        assert rows[repr(name), STEPS].indirect_cosine < 0.999

    one = rows[repr(rh.OneStep()), STEPS]
    leaves = [problem.l2, problem.lr]
    exact, step = ([*e.walk(lambda: problem.task(0, leaves), leaves, True)][-1] for e in (rh.Windowed(STEPS), rh.OneStep()))
    a, b = (torch.cat(e.indirect) for e in (step, exact))
    assert one.indirect_cosine == pytest.approx(float(a @ b / a.norm() / b.norm()))
    assert one.indirect_ratio == pytest.approx(float(a.norm() / b.norm()))
    assert all(row.seconds > 0 for row in found.rows)
    assert str(found).splitlines()[0].split() == ["estimator", "steps", "cosine", "ratio", "through", "training", "seconds"]
    assert len(str(found).splitlines()) == 11


def test_means_over_tasks_and_outer_steps():
    problem = Problem()

    def task(k, h):
        return [problem.task(k, h, False), problem.task(k, h, False)]

    one = rh.compare(lambda k, h: problem.task(k, h, False), [problem.l2, problem.lr], [rh.OneStep()])
    several = rh.compare(task, [problem.l2, problem.lr], [rh.OneStep()], at=(0, 1))
    assert several.rows[1].cosine == pytest.approx(one.rows[1].cosine)


def test_no_part_through_training():
    problem = Problem()
    found = rh.compare(lambda k, h: problem.task(k, h, False), [problem.l2, problem.lr], [rh.FirstOrder()])
    assert math.isnan(found.rows[1].indirect_cosine)
    assert found.rows[1].indirect_ratio == 0


def test_bad_input():
    problem = Problem()
    h = [problem.l2, problem.lr]
    with pytest.raises(ValueError, match="exact: expected an exact strategy, got DrMAD"):
        rh.compare(problem.task, h, [rh.OneStep()], exact=rh.DrMAD())
    with pytest.raises(ValueError, match=f"horizons: expected at most the task's {STEPS} steps, got 50"):
        rh.compare(problem.task, h, [rh.OneStep()], horizons=[50])
    with pytest.raises(ValueError, match="h: expected hyperparameters that require grad, got none"):
        rh.compare(problem.task, [x.detach() for x in h], [rh.OneStep()])
    with pytest.raises(TypeError, match="estimator: expected a strategy"):
        rh.compare(problem.task, h, [torch.optim.SGD])
