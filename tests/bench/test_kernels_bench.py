"""bench.kernels: every kernel is timed at a tiny size, and ratios are compared with committed results."""

import json
import subprocess
import sys

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
