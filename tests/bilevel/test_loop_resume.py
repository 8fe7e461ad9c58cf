"""Outer loops that are kept: killed at any moment, they come to the same bits, and their logs have each row once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loop_problem import ESTIMATORS, Interrupted, outcome, plain

import reversible_hypergrad as rh

pytestmark = pytest.mark.filterwarnings("ignore:outer step.*refused:RuntimeWarning")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_interrupted_again_and_again(estimator, tmp_path):
    expected, tasks = outcome(tmp_path / "whole", tmp_path / "whole.csv", estimator)
    wanted = plain(expected, tmp_path / "whole.csv")
    assert expected.refused  # the guard's state matters
    for at in (1, 2, tasks // 2, tasks):
        directory, log = tmp_path / str(at), tmp_path / f"{at}.csv"
        for interrupted in (at, 1):
            with pytest.raises(Interrupted):
                outcome(directory, log, estimator, at=interrupted)
        found, again = outcome(directory, log, estimator)
        assert plain(found, log) == wanted
        assert again <= tasks


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_finished_loop_returns_at_once_and_goes_on_if_asked_to(estimator, tmp_path):
    expected = plain(outcome(tmp_path / "whole", tmp_path / "whole.csv", estimator)[0], tmp_path / "whole.csv")
    first, _ = outcome(tmp_path / "kept", tmp_path / "kept.csv", estimator, steps=4)
    again, tasks = outcome(tmp_path / "kept", tmp_path / "kept.csv", estimator, steps=4)
    assert tasks == 0
    assert str(again) == str(first)
    assert torch.equal(again.h["l2"], first.h["l2"])
    assert len(again.history) == 4
    found, _ = outcome(tmp_path / "kept", tmp_path / "kept.csv", estimator)
    assert plain(found, tmp_path / "kept.csv") == expected
    with pytest.raises(ValueError, match=r"resume: the directory holds 1[12] outer steps, but steps=5"):
        outcome(tmp_path / "kept", tmp_path / "kept.csv", estimator, steps=5)


def test_it_is_the_loop_without(tmp_path):
    expected = plain(outcome(tmp_path / "kept", tmp_path / "kept.csv")[0], tmp_path / "kept.csv")
    assert plain(outcome(None, tmp_path / "plain.csv")[0], tmp_path / "plain.csv") == expected


def test_another_call_is_refused(tmp_path):
    def run(given, directory=tmp_path, h=1.0, lr=0.1, sets=None, guard=None, optimizer=torch.optim.Adam, **more):
        return rh.Bilevel(
            quadratic, {"a": torch.tensor(h, requires_grad=True)}, given, optimizer, lr=lr, sets=sets, guard=guard
        ).run(2, resume=directory, **more)

    model = torch.nn.Linear(1, 1)

    def quadratic(k, h):
        outer = lambda weights: h["a"].square() + weights["weight"].square().sum()  # noqa: E731
        return rh.Task(model, lambda m, b, a: m(b).square().mean(), torch.ones(1, 1, 1), outer, rh.SGD(0.1))

    run(rh.Snapshots())
    for name, change in {
        "h": {"h": 2.0},
        "estimator": {"given": rh.Reversible()},
        "optimizer": {"lr": 0.2},
        "sets": {"sets": rh.Box(0, 2)},
        "guard": {"guard": rh.Guard()},
        "score": {"score": lambda h, k: 0},
    }.items():
        with pytest.raises(ValueError, match=rf"resume: the directory holds another run: {name} differ \(kept: .*Make the same"):
            run(**{"given": rh.Snapshots(), **change})
    with pytest.raises(ValueError, match="another run: optimizer differ"):
        run(rh.Snapshots(), optimizer=torch.optim.SGD)
    assert len(run(rh.Snapshots()).history) == 2


def started(directory, estimator):
    directory.mkdir(exist_ok=True)
    here = Path(__file__).resolve()
    program = [sys.executable, here.with_name("loop_problem.py"), directory / "kept", directory / "log.csv", estimator]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parents[2], here.parents[1])))}
    return subprocess.Popen(list(map(str, program)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill(directory, estimator, rows, seconds):
    """The program, so many seconds after its log has so many rows."""
    process = started(directory, estimator)
    log = directory / "log.csv"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 1 + rows):
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check_killed(tmp_path, estimator, moments):
    expected = plain(outcome(tmp_path / "whole", tmp_path / "whole.csv", estimator)[0], tmp_path / "whole.csv")
    for i, (rows, seconds) in enumerate(moments):
        kill(tmp_path / str(i), estimator, rows, seconds)
        assert not (tmp_path / str(i) / "kept" / "end.kept").exists()
        found, errors = started(tmp_path / str(i), estimator).communicate(timeout=120)
        assert found.strip() == expected, errors


def test_killed(tmp_path):
    check_killed(tmp_path, "whole", [(7, 0.01)])


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_killed_at_20_moments(estimator, tmp_path):
    """Steps take 0.05 s at least."""
    chance = random.Random(0)
    check_killed(tmp_path, estimator, [(chance.randrange(11), chance.uniform(0, 0.05)) for _ in range(20)])
