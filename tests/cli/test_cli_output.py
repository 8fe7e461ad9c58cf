"""Where a command's output cannot go: one line, exit status 2."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY

from reversible_hypergrad.cli import output, search
from reversible_hypergrad.cli.optimizers import OPTIMIZERS
from reversible_hypergrad.cli.problem import Problem

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
MODULE = [sys.executable, "-m", "reversible_hypergrad"]
FINE = """
import torch
def problem():
    return torch.nn.Linear(2, 1), lambda model, batch, _: model(batch).square().sum(), torch.ones(3, 2), None
"""


@pytest.fixture
def short(monkeypatch):
    """A command that fails at its end need not do much before."""
    monkeypatch.setattr(search, "grid_of", lambda optimizer: [{s.name: s.tried[0] for s in optimizer.settings}])


@pytest.mark.parametrize("name", ["hyperparameters.pt", "results.json", "table.txt", "schedules.pdf"])
def test_a_file_that_cannot_be_written_is_named(name, short, command, tmp_path):
    (tmp_path / name).mkdir()
    figures = [] if name.endswith("pdf") else ["--no-figures"]
    status, out, err = command(*TINY, *figures, "--output", tmp_path)
    assert (status, out) == (2, "")
    assert err == f"reversible_hypergrad: --output: {tmp_path / name} cannot be written: Is a directory\n"


def test_a_full_disk_is_noticed_at_the_beginning(monkeypatch, command, tmp_path):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", lambda dir: Full())
    monkeypatch.setattr(search, "best_constants", lambda *_: pytest.fail("began"))
    status, out, err = command(*TINY, "--output", tmp_path)
    assert (status, out) == (2, "")
    assert err == f"reversible_hypergrad: --output: {tmp_path} is not writable: No space left on device\n"


def test_the_probe_is_gone(tmp_path):
    assert output.writable(tmp_path / "new") == tmp_path / "new"
    assert not list((tmp_path / "new").iterdir())


@needs_full
def test_stdout_that_takes_nothing(tmp_path):
    """A full disk, and a pipe that nobody reads: nothing but one line, also when Python ends."""
    (tmp_path / "fine.py").write_text(FINE)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MODULE, "check", "fine:problem"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "reversible_hypergrad: standard output cannot be written: No space left on device\n",
    )


def test_an_unlucky_meta_step_is_one_line(short, command, tmp_path):
    """At the largest rate that is allowed the coordinates leave what float32 can hold the exponential of."""
    status, out, err = command(*TINY, "--no-figures", "--meta-steps", 40, "--meta-lr", 10, "--output", tmp_path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "the range of floating-point numbers" in err
    assert "(a smaller --meta-lr may help)" in err


def test_infinite_settings_are_named():
    from reversible_hypergrad.cli.data import load_digits

    problem = Problem(load_digits(0), [4], 4, 8, seed=0, state_bits=64, optimizer=OPTIMIZERS["sgd"])
    recipe = problem.constant_recipe()
    search._refuse_infinite(recipe, 0)
    with torch.no_grad():
        recipe.coordinates["l2"]["layer1.bias"][2] = 100.0
    with pytest.raises(OverflowError, match="after meta-step 3 the penalties have left"):
        search._refuse_infinite(recipe, 3)
