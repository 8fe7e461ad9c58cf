"""bench.kernels: every kernel is timed at a tiny size, and ratios are compared with committed results."""

import json
import subprocess
import sys

import pytest
import torch

from bench.backward import Backward
from bench.kernels import __main__ as kernels


def test_every_kernel_is_timed_and_the_results_are_small(tmp_path):
    results = tmp_path / "kernels.json"
    # In a process of its own: pytest inside pytest would share its plugins' state.
    command = [sys.executable, "-m", "bench.kernels", "--weights", "500", "--rounds", "2", "--update", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(results.read_text())
    assert set(written) == {"conditions", "medians"}
    kernels = "step", "undo", "back", "back_in_torch", "contract", "expand"
    names = {f"{kernel} {bits}" for kernel in kernels for bits in (32, 64)}
    assert set(written["medians"]["500"]) == {"yardstick", *names}
    assert done.stdout.count("a step back with its adjoint in the kernels, of one with it in torch: ") == 2
    assert results.stat().st_size < 2000


def test_ratios_are_compared_not_times(tmp_path, monkeypatch, capsys):
    results = tmp_path / "kernels.json"
    results.write_text(json.dumps({"conditions": "elsewhere", "medians": {"10": {"yardstick": 1.0, "step 32": 2.0}}}))
    # Ten times slower a machine, and a step that went from 2 to 3 yardsticks; a new kernel has nothing to compare with.
    monkeypatch.setattr(kernels, "run", lambda weights, rounds: {"10": {"yardstick": 10.0, "step 32": 30.0, "new": 5.0}})
    assert kernels.main(["--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[-3:] for line in out.splitlines() if line.startswith("step 32")] == [["3.00", "2.00", "+50%"]]
    assert "elsewhere" in out
    assert kernels.main(["--results", str(results), "--tolerance", "1.2"]) == 1
    assert "slower than committed by more than 1.2: step 32 at 10 weights" in capsys.readouterr().out
    assert kernels.main(["--results", str(results), "--update"]) == 0
    assert json.loads(results.read_text())["medians"]["10"]["step 32"] == 30.0


@pytest.mark.parametrize("state_bits", [32, 64])
def test_both_ways_back_that_are_compared_do_the_same(state_bits):
    runs = []
    for way in (Backward.back, Backward.back_in_torch):
        torch.manual_seed(0)
        weights = [torch.randn(30, 20), torch.randn(700)]
        run = Backward(weights, [torch.randn_like(w) for w in weights], state_bits, weight_decay=0.1)
        start = [w.clone() for w in weights]
        run.step()
        run.step()
        for _ in range(2):  # the second undoing has what the kernels carry from the first
            way(run)
        assert all(torch.equal(w, s) for w, s in zip(weights, start, strict=True))
        runs.append(run)
    # Two roundings to float32 of numbers of order 1, and sums of 700 of them.
    for name in ("aw", "av", "sums"):
        torch.testing.assert_close(*(getattr(run, name).double() for run in runs), rtol=1e-5, atol=1e-4, msg=name)
