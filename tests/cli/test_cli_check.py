"""``check``: the verdict, the layer, and targets that are none."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time

import pytest

SOURCE = """
    import torch
    from torch import nn

    def loss(model, batch, hyperparameters):
        return model(batch).square().mean()

    class Counting(nn.Module):
        calls = 0
        def forward(self, x):
            self.calls += 1
            return x * self.calls

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * 2

    class OnceOnly(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    def good():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 1)), loss, torch.randn(8, 3), None

    def counting():
        return nn.Sequential(nn.Linear(3, 4), Counting()), loss, torch.randn(8, 3), None

    def once():
        return nn.Sequential(nn.Linear(3, 4), OnceOnly(), nn.Tanh()), loss, torch.randn(8, 3), None

    def three():
        return 1, 2, 3

    def broken():
        raise KeyError("gone")

    def no_scalar():
        return nn.Linear(3, 4), lambda model, batch, h: model(batch), torch.randn(8, 3), None

    number = 7
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "users_problem.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("users_problem", None)


def test_good(here, command):
    began = time.perf_counter()
    status, out, err = command("check", "users_problem:good")
    assert time.perf_counter() - began < 5
    assert (status, err) == (0, "")
    assert out.count("yes") == 3
    assert "replays bit for bit" in out


def test_counting_layer_is_named(here, command):
    status, out, _ = command("check", "users_problem:counting")
    assert status == 1
    assert "'1' (Counting)" in out


def test_layer_without_second_derivative_is_named(here, command):
    status, out, _ = command("check", "users_problem:once", "--json")
    result = json.loads(out)
    assert status == 1
    assert result["replayable"] is False
    assert result["same_gradients"] is True
    assert result["second_derivatives"] is False
    assert "'1' (OnceOnly)" in result["problems"][0]


BAD = {
    "users_problem": "expected MODULE:FUNCTION",
    ":good": "expected MODULE:FUNCTION",
    "no_such_module:good": "no_such_module cannot be imported",
    "users_problem:nothing": "has no function 'nothing'",
    "users_problem:number": "has no function 'number'",
    "users_problem:three": "got a tuple of 3",
    "users_problem:broken": "users_problem:broken failed: KeyError",
    "users_problem:no_scalar": "expected it to return a scalar tensor",
}


@pytest.mark.parametrize("target", BAD)
def test_bad_targets_give_one_line(here, command, target):
    status, out, err = command("check", target)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert BAD[target] in err


def test_as_a_module(here):
    result = subprocess.run(
        [sys.executable, "-m", "reversible_hypergrad", "check", "users_problem:good"], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
