"""bench.tradeoff at a tiny size: its table, what it leaves out and why, that it resumes, and its figures."""

import csv

import pytest

from bench import tradeoff
from bench.measure import LeftOut
from bench.methods import METHODS
from bench.tradeoff_figures import STYLES, label
from bench.tradeoff_table import Point, Table

RESULT = {"cpu_seconds": 2.0, "wall_seconds": 2.0, "megabytes": 10.0, "megabytes_beyond_warm_up": 8.0, "error": 1e-6}


@pytest.fixture
def run(tmp_path):
    """Runs the command with files in tmp_path; returns the rows of the table."""

    def call(*arguments):
        files = ["--csv", tmp_path / "t.csv", "--figures", tmp_path / "t", "--references", tmp_path / "references"]
        tradeoff.main([*map(str, (*files, "--model", "small", "--repeats", 1, *arguments))])
        with (tmp_path / "t.csv").open() as file:
            return list(csv.DictReader(line for line in file if not line.startswith("#")))

    return call


@pytest.fixture
def fake(monkeypatch):
    """Replaces the measurement by one that grows with the steps; returns the calls."""
    calls = []

    def measured(method, steps, **options):
        calls.append((method, steps))
        if steps == 77 and method != "training":
            raise LeftOut(f"ran past {options['seconds']:g} s")
        return {name: value * (1 if name == "error" else steps / 10) for name, value in RESULT.items()}

    monkeypatch.setattr(tradeoff, "measured", measured)
    monkeypatch.setattr(tradeoff, "reference", lambda *arguments: None)
    return calls


def test_a_tiny_run_writes_the_table_and_both_figures(run, tmp_path, capsys):
    methods = ["rh.Reversible", "rh.Snapshots", "rh.DrMAD", "rh.ForwardMode", "higher", "betty"]
    rows = run("--steps", 2, 4, "--methods", *methods)
    out = capsys.readouterr().out
    assert [(r["steps"], r["method"]) for r in rows] == [(s, m) for s in "24" for m in ["training", *methods]]
    for row in rows:
        if row["method"] == "rh.ForwardMode":
            assert row["left_out"] == "needs a tangent per hyperparameter, here 1,210"
        elif METHODS[row["method"]].missing():
            assert row["left_out"].startswith("not installed: pip install")
            assert f"{row['method']} is left out: not installed" in out
        else:
            assert row["left_out"] == ""
            assert float(row["cpu_seconds"]) > 0
            assert float(row["of_training"]) > 0
            if row["method"] in ("rh.Reversible", "rh.Snapshots", "higher"):
                assert float(row["error"]) < 1e-5
    for name in ("t-memory.png", "t-time.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_forward_mode_joins_where_hyperparameters_are_few(run):
    rows = run("--steps", 2, "--methods", "rh.ForwardMode", "--penalties", "tensor")
    assert float(rows[1]["error"]) < 1e-5


def test_points_in_the_table_are_not_measured_again(run, fake):
    run("--steps", 10, "--methods", "rh.Snapshots")
    assert fake == [("training", 10), ("rh.Snapshots", 10)]
    run("--steps", 10, 30, "--methods", "rh.Snapshots", "rh.Checkpoint")
    assert fake[2:] == [("rh.Checkpoint", 10), ("training", 30), ("rh.Snapshots", 30), ("rh.Checkpoint", 30)]
    del fake[:]
    rows = run("--steps", 10, "--methods", "rh.Snapshots", "rh.Checkpoint", "--again", "rh.Checkpoint")
    assert fake == [("rh.Checkpoint", 10)]
    assert len(rows) == 6
    run("--steps", 10, "--methods", "rh.Snapshots", "--draw")
    assert fake == [("rh.Checkpoint", 10)]


def test_points_beyond_a_limit_are_left_out_with_the_reason(run, fake):
    steps = ["--steps", 10, 30, 300, "--methods"]
    reasons = {r["steps"]: r["left_out"] for r in run(*steps, "rh.Snapshots", "--seconds", 20) if r["method"] == "rh.Snapshots"}
    assert reasons == {"10": "", "30": "", "300": "predicted 60 s of time, limit 20 s"}
    reasons = {r["steps"]: r["left_out"] for r in run(*steps, "rh.Unroll", "--gigabytes", 0.1) if r["method"] == "rh.Unroll"}
    assert reasons["300"] == "predicted 0.3 GB of memory, limit 0.1 GB"


def test_no_larger_run_is_tried_after_one_that_passed_a_limit(run, fake):
    rows = run("--steps", 77, 100, 200, "--methods", "rh.Unroll", "--seconds", 9)
    reasons = [r["left_out"] for r in rows if r["method"] == "rh.Unroll"]
    assert reasons == ["ran past 9 s", "ran past 9 s at T = 77", "ran past 9 s at T = 77"]
    assert ("rh.Unroll", 100) not in fake


def test_a_table_of_another_task_or_machine_is_refused(run, fake, tmp_path):
    run("--steps", 10, "--methods", "rh.Snapshots")
    with pytest.raises(SystemExit, match="holds points of"):
        run("--steps", 10, "--methods", "rh.Snapshots", "--penalties", "tensor")
    path = tmp_path / "t.csv"
    path.write_text(path.read_text().replace("torch", "torch 0", 1))
    with pytest.raises(SystemExit, match="Name or remove a file"):
        run("--steps", 10, "--methods", "rh.Snapshots")


def test_peers_that_were_missing_are_asked_for_again(tmp_path):
    table = Table.open(tmp_path / "t.csv", "task", "machine", "")
    table.add(Point("higher", True, 10, 0, left_out="not installed: pip install higher"))
    table.add(Point("rh.Unroll", True, 10, 0, left_out="ran past 300 s"))
    again = Table.open(tmp_path / "t.csv", "task", "machine", "higher 0.2.1")
    assert [p.method for p in again.points] == ["rh.Unroll"]
    assert Table.read(tmp_path / "t.csv").peers == "higher 0.2.1"


def test_medians_over_turns_and_labels_with_the_range_of_errors(tmp_path):
    table = Table.open(tmp_path / "t.csv", "task", "machine", "")
    for steps, errors in ((10, (0.1, 0.3, 0.2)), (30, (500.0, 700.0, 600.0))):
        for turn, error in enumerate(errors):
            table.add(Point("rh.DrMAD", False, steps, turn, megabytes=float(turn), error=error))
    read = Table.read(tmp_path / "t.csv")
    assert read.medians("rh.DrMAD", "megabytes", "error") == [(10, 1.0, 0.2), (30, 1.0, 600.0)]
    assert label(read, "rh.DrMAD") == "DrMAD(), error 0.2 to 6e2"


def test_every_method_has_a_style_of_its_own():
    drawn = [m for m in METHODS.values() if not m.compiled]  # the others need a minute before the first step
    assert set(STYLES) == {m.name for m in drawn}
    for exact in (True, False):
        markers = [STYLES[m.name][1] for m in drawn if m.exact == exact]
        assert len(set(markers)) == len(markers)


def test_nothing_to_draw_is_said(tmp_path):
    Table.open(tmp_path / "t.csv", "task", "machine", "")
    with pytest.raises(SystemExit, match="no point was measured"):
        tradeoff.main(["--draw", "--csv", str(tmp_path / "t.csv"), "--figures", str(tmp_path / "t")])
