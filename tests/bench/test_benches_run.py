"""The benches run at a tiny size here, so that they cannot rot; timings are not judged."""

from bench import sgd_step
from bench.timing import ratio


def test_sgd_step_prints_every_candidate(capsys):
    sgd_step.main(["--weights", "5000", "--turns", "4"])
    out = capsys.readouterr().out
    for name in ("copy", "SGD(fused)", "SGD(foreach)", "step 32", "step 64", "undo 32", "undo 64"):
        assert f"\n{name}" in out
    assert "both kernels of undo 64 / step 64" in out


def test_ratio_is_taken_turn_by_turn():
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == (2.0, 2.0, 2.0)
