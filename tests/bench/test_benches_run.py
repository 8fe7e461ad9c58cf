"""The benches run at a tiny size here, so that they cannot rot; timings are not judged."""

import csv
import re

import pytest

import reversible_hypergrad as rh
from bench import chaos, compiled, hyperparameters, long_run, many_losses, optimizer_step, precision, race, rollback, transformer
from bench.timing import ratio


@pytest.mark.parametrize("optimizer", optimizer_step.RACED)
def test_optimizer_step_prints_every_candidate(optimizer, capsys):
    before = rh.core.instruction_sets()[0]
    try:
        optimizer_step.main([optimizer, "--weights", "5000", "--turns", "4", "--instruction-set", "portable"])
    finally:
        rh.core.use_instruction_set(before)
    out = capsys.readouterr().out
    assert "portable kernels" in out
    for name in ("copy", "fused", "foreach", "step 32", "undo 32", "halving 64", "undo halving 64"):
        assert f"\n{name}" in out
    assert "both kernels of undo 64 / step 64" in out


def test_a_halving_step_is_one():
    """The step that the pair takes in every turn fills a plane, in the usual pair it does not."""
    for steps_before, planes in ((1, 0), (optimizer_step.HALVING, 1)):
        pair = optimizer_step.Pair(optimizer_step.RACED["sgd"], [(800,)], 64, steps_before)
        kept = pair.optimizer.memory()["information_bytes"]
        pair.step()
        assert pair.optimizer.memory()["information_bytes"] - kept == 100 * planes


def test_ratio_is_taken_turn_by_turn():
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == (2.0, 2.0, 2.0)


def test_race_measures_and_checks(capsys, tmp_path):
    methods = ["training", "snapshots", "recursive", "rh.Reversible", "rh.Reversible-64", "rh.RecursiveCheckpoint"]
    assert set(methods) < set(race.RACED)
    files = ["--csv", str(tmp_path / "race.csv")]
    race.main(["--steps", "3", "--repeats", "1", "--check", "3", *files, "--methods", *methods])
    where, *lines = (tmp_path / "race.csv").read_text().splitlines()
    assert re.fullmatch(r"# .* 1 thread, torch .*, load [\d.]+; medians of 1", where)
    rows = list(csv.DictReader(lines))
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert float(row["cpu_seconds"]) > 0
        if row["method"] != "training":
            # Three steps leave no room for float32's noise to grow.
            assert float(row["error"]) < 1e-5


def test_number_of_hyperparameters_is_compared(capsys):
    hyperparameters.main(["--steps", "2", "--turns", "1"])
    assert "10,000 hyperparameters" in capsys.readouterr().out


def test_chaos_draws_its_figure(tmp_path, capsys):
    chaos.main(["--steps", "3", "--points", "9", "--output", str(tmp_path / "chaos.png")])
    assert (tmp_path / "chaos.png").stat().st_size > 1000
    assert "correlation with the numeric slope 1.00" in capsys.readouterr().out


def test_a_long_run_says_what_it_kept(capsys):
    long_run.main(["--steps", "40", "--segments", "4"])
    out = capsys.readouterr().out
    assert "30 steps trained again; initial weights restored: True" in out


def test_rollback_is_exact_in_integers_only(capsys):
    rollback.main(["--steps", "1", "100", "--weights", "500"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "True" in line]
    assert [row[0] for row in rows] == ["1", "100"]
    assert float(rows[1][1]) > 1e-3, "floats came back"
    assert float(rows[1][5]) == pytest.approx(0.15, abs=0.01)


def test_transformer_prints_a_row_per_strategy(capsys, tmp_path):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 450)
    transformer.main(["--text", str(text), "--steps", "3", "--strategies", "reversible", "checkpoint"])
    out = capsys.readouterr().out
    assert re.search(r"\nreversible .*True", out)
    assert re.search(r"\ncheckpoint ", out)
    assert "reversible from checkpoint: learning rates" in out


def test_many_losses_have_the_bits_of_their_own_walks(capsys, set_num_threads):
    many_losses.main(["--losses", "1", "3", "--steps", "4", "--repeats", "1", "--model", "small"])
    assert "the last one of 3 has the bits of a walk of its own: True" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:loss. it computes:RuntimeWarning")
def test_precision_is_compared_with_float64(capsys):
    precision.main(["--steps", "3", "--only", "float32", "TF32, emulated", "autocast to bfloat16"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.endswith("True |")]
    assert [row[0] for row in rows] == ["float32", "TF32, emulated", "autocast to bfloat16"] * len(precision.RULES)
    by_sequences = [float(row[2]) for row in rows[:3]]  # of SGD, which amplifies little in three steps
    assert by_sequences[0] < 1e-5 < by_sequences[1] < 1e-3 < 10 * by_sequences[2]


@pytest.mark.slow
def test_compiled_gradients_in_every_model(capsys, set_num_threads):
    compiled.main(["--steps", "3", "--repeats", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["mlp", "conv", "transformer"]
    assert all(row[-1] == "True" for row in rows)  # restored
