"""A process that is killed leaves no file of planes behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from open_files import open_files

PROGRAM = """
import sys
import torch
import reversible_hypergrad as rh

(directory,) = sys.argv[1:]
lr = torch.tensor(0.1, requires_grad=True)
adjoints = [rh.Reversible(buffer=directory), rh.Reversible(buffer=directory, segments=3), rh.Checkpoint(store=directory)]

def loss(model, batch, _):
    return model(batch).square().mean()

torch.set_num_threads(1)
model, data = torch.nn.Linear(64, 64), torch.randn(30, 8, 64)
kept = [rh.train(model, loss, data, optimizer=rh.SGD(lr), adjoint=adjoint) for adjoint in adjoints]
print("trained", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed(number, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "trained\n"
        paths = open_files(tmp_path, process.pid)
        assert len(paths) == 3
        assert all(path.stat().st_size > 0 for path in paths)
        process.send_signal(number)
        assert process.wait(60) == -number
    assert not list(tmp_path.iterdir())
