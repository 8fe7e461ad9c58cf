"""Runs that are kept: interrupted at any moment, they come to the same bits, and leave nothing behind."""

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
from kept_run import Interrupted, outcome
from runs import Run, error, same

import reversible_hypergrad as rh

STRATEGIES = ["reversible", "reversible, 3 segments", "checkpoint", "unroll"]


def check_interrupted(strategy, directory, count):
    """At ``count`` moments, or at every evaluation."""
    expected, evaluations = outcome(strategy, directory)
    assert not directory.exists()
    for at in range(1, evaluations + 1, 1 if count is None else evaluations // count):
        with pytest.raises(Interrupted):
            outcome(strategy, directory, at=at)
        found, again = outcome(strategy, directory)
        assert same(found, expected)
        assert again <= evaluations
        assert not directory.exists()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_interrupted(strategy, tmp_path):
    check_interrupted(strategy, tmp_path / "kept", 6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_interrupted_at_every_evaluation(strategy, tmp_path):
    check_interrupted(strategy, tmp_path / "kept", None)


def test_it_is_the_run_without(tmp_path):
    expected, _ = outcome("reversible", None)
    (tmp_path / "of others").touch()
    found, _ = outcome("reversible", tmp_path)
    assert same(found[:7], expected[:7])  # the value, and the weights
    assert error(found[7:], expected[7:]) < 1e-6  # gradients are rounded to float32 between parts
    assert [path.name for path in tmp_path.iterdir()] == ["of others"]


@pytest.mark.parametrize("more", [{"clip": rh.clip_norm(0.5)}, {"accumulate": 3}])
@pytest.mark.parametrize("name", ["convolution and batch norm", "transformer with dropout"])
def test_buffers_random_numbers_and_micro_batches(name, more, tmp_path):
    expected, evaluations = outcome("reversible", tmp_path, name, **more)
    for at in range(3, evaluations + 1, evaluations // 3):
        with pytest.raises(Interrupted):
            outcome("reversible", tmp_path, name, at=at, **more)
        assert same(outcome("reversible", tmp_path, name, **more)[0], expected)


def test_interrupted_many_times(tmp_path):
    expected, _ = outcome("reversible", tmp_path)
    found = None
    for at in [3, 8, 8, 2, 9, 8, 7, 11, 12, 13, 14, 15, None]:
        try:
            found, _ = outcome("reversible", tmp_path, at=at)
            break
        except Interrupted:
            continue
    assert found is not None
    assert same(found, expected)


def test_a_second_backward_and_none_at_all(tmp_path):
    run = Run("AdamW")
    trained = run.train(resume=tmp_path)
    value = run.value(trained)
    first = torch.autograd.grad(value, run.lr, retain_graph=True)
    assert same(first, torch.autograd.grad(value, run.lr))
    with torch.no_grad():
        again = run.train(resume=tmp_path)
    assert same(again.values(), trained.values())
    assert not tmp_path.exists()


def test_many_losses(tmp_path):
    def found():
        run = Run()
        trained = run.train(resume=rh.Resume(tmp_path, every=5))
        return rh.hypergradients([run.value(trained), trained["4.bias"].sum()], [run.lr, run.l2])

    one, other = found(), found()
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_another_call_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        outcome("reversible", tmp_path, at=8)
    kept = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"resume: the directory holds another run: adjoint differ \(kept: Reversible"):
        outcome("checkpoint", tmp_path)
    with pytest.raises(ValueError, match="resume: the directory holds another run: optimizer, first states"):
        outcome("reversible", tmp_path, rule="SGD", start=rh.Start(states={"4.bias": {"v": torch.ones(3)}}))
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    outcome("reversible", tmp_path)


@pytest.mark.parametrize("at", [8, 14])
def test_other_data_under_the_same_call_is_noticed(at, tmp_path, monkeypatch):
    """Killed in the second part, or on the way back: what is trained again must come to what was kept."""
    with pytest.raises(Interrupted):
        outcome("reversible", tmp_path, at=at)
    kept = {path.name for path in tmp_path.iterdir()}
    plain = Run.loss

    def loss(self, *given):
        return 1.5 * plain(self, *given)

    monkeypatch.setattr(Run, "loss", loss)
    with pytest.raises(rh.ReversalError, match=r"training once more from step \d+ did not come to the weights that were kept at"):
        outcome("reversible", tmp_path)
    assert kept <= {path.name for path in tmp_path.iterdir()}  # nothing is lost


def test_other_numbers_in_tensors_are_another_call(tmp_path):
    """Also in those that only a clipping or a readout is given, and not in what has no value to compare."""

    def train(limit, decay, at=None):
        run, count = Run(), iter(range(100))
        plain = run.loss

        def loss(model, index, hyperparameters):
            if next(count) == at:
                raise Interrupted
            return plain(model, index, hyperparameters[0])

        return rh.train(
            run.model,
            loss,
            lambda step: slice(0, 12),
            steps=8,
            optimizer=rh.SGD(0.1),
            hyperparameters=[run.l2, object()],
            clip=rh.clip_norm(torch.tensor(limit)),
            readouts={"ema": rh.ExponentialAverage(torch.tensor(decay))},
            resume=rh.Resume(tmp_path, every=3),
        )

    with pytest.raises(Interrupted):
        train(0.5, 0.9, at=5)
    for limit, decay, argument in ((0.4, 0.9, "clip"), (0.5, 0.8, "readouts")):
        with pytest.raises(ValueError, match=f"resume: the directory holds another run: {argument} differ"):
            train(limit, decay)
    train(0.5, 0.9)


def test_a_damaged_file(tmp_path):
    with pytest.raises(Interrupted):
        outcome("reversible", tmp_path, at=8)
    (last,) = [path for path in tmp_path.iterdir() if path.name.startswith("step-000000000005")]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(rh.ReversalError, match=r"cannot be read.*Delete the directory to begin anew"):
        outcome("reversible", tmp_path)


@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda d: rh.Resume(3), TypeError, "directory: expected a path, got int"),
        (lambda d: rh.Resume(d, every=0), ValueError, "every: expected an integer >= 1 or None, got 0"),
        (lambda d: Run().train(resume=True), TypeError, "resume: expected a directory, an rh.Resume or None, got bool"),
        (lambda d: Run().train(rh.ForwardMode(force=True), resume=d), ValueError, "resume: expected an exact strategy"),
        (lambda d: Run().train(rh.Truncated(3), resume=d), ValueError, "resume: expected an exact strategy"),
    ],
)
def test_bad_arguments(make, error_type, message, tmp_path):
    with pytest.raises(error_type, match=message):
        make(tmp_path)


def killed(directory, strategy, seconds):
    """The program, killed after a while. What it printed, if it was faster; and how it ended."""
    program = [sys.executable, str(Path(__file__).with_name("kept_run.py")), str(directory), strategy]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment())
    try:
        printed, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None, ""
    return printed.strip(), errors


def _environment():
    here = Path(__file__).resolve()
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parents[2], here.parents[1], here.parent)))}


def check_killed(directory, strategy, moments):
    began = time.perf_counter()
    expected, errors = killed(directory, strategy, 120)
    assert expected, errors
    whole = time.perf_counter() - began
    for part in moments:
        killed(directory, strategy, part * whole)
        found, errors = killed(directory, strategy, 120)
        assert found == expected, errors
        assert not directory.exists()


def test_killed(tmp_path):
    check_killed(tmp_path / "kept", "reversible", [0.97])


@pytest.mark.slow
def test_killed_at_50_moments(tmp_path):
    """Importing takes the first half of the time."""
    chance = random.Random(0)
    check_killed(tmp_path / "kept", "reversible", [chance.uniform(0.5, 1.0) for _ in range(50)])
