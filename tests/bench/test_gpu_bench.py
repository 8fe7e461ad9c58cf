"""The GPU bench runs at toy size on the CPU, says what it made up, and hides no failure."""

import numpy as np
import pytest
import torch

from bench.gpu import __main__ as bench
from bench.gpu import models
from bench.gpu.data import cifar10, text
from bench.gpu.report import Deadline, OverBudget, Part, Setup, run

TINY = ["--device", "cpu", "--tiny", "--output"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    (tmp_path / "data" / "text").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data" / "cifar10" / "few.npz", x_train=images, y_train=np.arange(40, dtype=np.uint8) % 10)
    (tmp_path / "data" / "text" / "some.txt").write_text("To be, or not to be. " * 100)
    return tmp_path / "data"


def test_every_part_runs(tmp_path, folder, capsys):
    target = tmp_path / "results" / "toy.md"
    assert bench.main([*TINY, str(target), "--data", str(folder)]) == 0
    report = target.read_text()
    for part in bench.PARTS:
        assert f"## {part.title}\n" in report
    for line in (
        "TOY SIZES",
        "| step 64 |",
        "| undo 32 |",
        "| weights back 32 |",
        "| states back 64 |",
        "| SGD(fused) |",
        "every bit the same",
        "few.npz",
        "some.txt",
    ):
        assert line in report
    assert report.count("every bit of every weight as at the start") == 2
    assert report.count("| rh.") == 3
    assert "(no GPU: there are no CUDA graphs to compare with)" in report
    assert report.count(", launch by launch |") == 2
    assert "FAILED" not in report
    assert "MADE-UP" not in report
    assert not torch.are_deterministic_algorithms_enabled()


def test_under_eight_minutes():
    assert sum(part.seconds for part in bench.PARTS) <= 470


def test_a_failure_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def broken(setup, deadline):
        yield "so far"
        raise RuntimeError("out of order")

    def slow(setup, deadline):
        while True:
            deadline.check()
            yield "one more"

    def fine(setup, deadline):
        yield "all is well"

    monkeypatch.setattr(bench, "PARTS", [Part("A", 9, broken), Part("B", 0.01, slow), Part("C", 9, fine)])
    target = tmp_path / "r.md"
    assert bench.main([*TINY, str(target)]) == 1
    report = target.read_text()
    assert "so far\n\n**FAILED** after 0 s: RuntimeError: out of order" in report
    assert "OverBudget: ran past its 0.01 s" in report
    assert "all is well" in report
    assert "failed: A, B" in capsys.readouterr().out


def test_a_part_that_runs_over_stops_inside_a_run(tmp_path):
    """The deadline is looked at by every batch, forwards and backwards."""
    late = [Part(part.title, 0.0, part.lines) for part in bench.PARTS]
    failed = run(late, Setup(torch.device("cpu"), True, None), [], tmp_path / "r.md")
    assert failed == [part.title for part in bench.PARTS]
    with pytest.raises(OverBudget):
        Deadline(-1).check()


def test_what_no_longer_fits_is_left_out(tmp_path, capsys):
    target = tmp_path / "r.md"
    assert bench.main([*TINY, str(target), "--seconds", "0"]) == 1
    assert target.read_text().count("OverBudget: left out, since the 0 s for all parts are over") == len(bench.PARTS)


def test_what_is_missing_is_made_up_and_said(tmp_path):
    images, labels, source = cifar10(tmp_path, 5)
    assert (images.shape, labels.shape) == ((5, 3, 32, 32), (5,))
    assert "MADE-UP images" in source
    assert "npz is missing" in source
    windows, source = text(None, 4, 9)
    assert windows.shape == (4, 9)
    assert "MADE-UP bytes, since no --data DIR was given" in source


def test_data_of_another_shape_is_refused(folder):
    np.savez(folder / "cifar10" / "a.npz", x_train=np.zeros((4, 3, 32, 32), np.uint8), y_train=np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match=r"a.npz: expected x_train of uint8 \(n, 32, 32, 3\)"):
        cifar10(folder, 4)


def test_sizes_of_the_models():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in model.parameters()) for model in (models.language_model(), models.resnet())]
    assert counts[0] > 100_000_000
    assert 600_000 < counts[1] < 800_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("options", "message"), [([], "no CUDA GPU"), (["--device", "cpu"], "expected --tiny")])
def test_refused_before_anything_runs(options, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(options)
    assert message in capsys.readouterr().err
