"""The stages of `make gpu`: each ends in time, none stops the others; and the sanitizer says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

import reversible_hypergrad as rh
from bench.gpu import all as everything
from bench.gpu import sanitize
from bench.gpu.all import Stage

PYTHON = sys.executable


def test_no_stage_stops_the_others(tmp_path, capsys):
    slow, fine = ["sh", "-c", "echo so far; sleep 60"], ["sh", "-c", "echo $0 $@"]
    told = Stage("build", 9, ["sh", "-c", "echo $RH_TOLD; exit 3"], {"RH_TOLD": "so"})
    chosen = [told, Stage("tests", 0.5, slow), Stage("bench", 60, fine)]
    assert everything.run(chosen, tmp_path / "out", 100) == ["build", "tests"]
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "## build: exit status 3" in summary
    assert (tmp_path / "out" / "build.log").read_text() == "so\n"
    assert "## tests: ran past its time and was ended" in summary
    assert "so far" in summary
    assert "## bench: passed" in summary
    assert (tmp_path / "out" / "bench.log").read_text() == "--seconds 45\n"


def test_what_is_left_goes_to_the_last_stage(tmp_path):
    began = time.monotonic()
    chosen = [Stage(name, 60, ["sleep", "30"]) for name in ("tests", "sanitize")]
    assert everything.run(chosen, tmp_path, 1.0) == ["tests", "sanitize"]
    assert time.monotonic() - began < 20


def test_stages_are_commands_of_this_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    build, tests, sanitizer, bench = everything.stages(tmp_path, tmp_path)
    assert build.variables == {"RH_CUDA": "1"}
    assert "--no-build-isolation" in build.command
    assert "--no-deps" in build.command
    assert tests.command[:4] == [PYTHON, "-m", "pytest", "tests/gpu"]  # other tests import what such a machine may lack
    for stage in (sanitizer, bench):
        module = stage.command[2]
        shown = subprocess.run([PYTHON, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout
        assert all(option in shown for option in stage.command[3:] if str(option).startswith("--"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_seems_to_pass(tmp_path, capsys):
    with pytest.raises(SystemExit):
        everything.main(["--out", str(tmp_path / "out"), "--stages", "tests"])
    assert "no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_sanitizer_wants_a_gpu(capsys):
    with pytest.raises(SystemExit):
        sanitize.main([])
    assert "no CUDA GPU: torch.cuda.is_available() is False" in capsys.readouterr().err


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Something in compute-sanitizer's place, on a machine that seems to have a GPU. Returns where to write it."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sanitize, "cuda_in_build", lambda: True)

    def write(text, folder=""):
        path = tmp_path / folder / "compute-sanitizer"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def test_a_missing_sanitizer_is_said(tool, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "find", lambda: None)
    with pytest.raises(SystemExit):
        sanitize.main([])
    assert "compute-sanitizer: not found on the PATH, nor under CUDA_HOME" in capsys.readouterr().err


def test_where_the_sanitizer_is_looked_for(tool):
    in_toolkit = tool("", "CUDA_HOME/bin")
    assert sanitize.find() == in_toolkit
    on_path = tool("")
    assert sanitize.find() == on_path


@pytest.mark.parametrize(("status", "words"), [(0, "passed"), (86, "found errors in a kernel"), (1, "exit status 1")])
def test_each_tool_runs_and_its_status_counts(tool, status, words, capfd):
    tool(f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING: $@"; case "$@" in *racecheck*) exit {status};; esac')
    assert sanitize.main([]) == (1 if status else 0)
    out = capfd.readouterr().out
    assert "1: --tool memcheck" in out
    assert "1: --tool racecheck" in out
    assert "memcheck: passed" in out
    assert words in out.splitlines()[-1]


def test_a_tool_that_hangs_is_ended(tool, capfd):
    tool("sleep 60")
    assert sanitize.main(["--seconds", "0.5", "--tools", "memcheck"]) == 1
    assert "ran past its time" in capfd.readouterr().out


@pytest.mark.skipif(not rh.core.cuda_in_build(), reason="no CUDA kernels in this build")
def test_the_tools_look_at_our_kernels():
    """Names of device code are in the library as they are given to CUDA."""
    prefix = sanitize.command(sanitize.Path("x"), "memcheck")[4].partition("=")[2].encode()
    library = sanitize.Path(rh._ops.reversible_hypergrad._C.__file__).read_bytes()
    assert any(b"kernel" in name for name in library.split(b"\0") if name.startswith(prefix))


def test_there_are_tests_to_run_under_it():
    asked = [
        PYTHON,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *sanitize.command(sanitize.Path("x"), "memcheck")[-3:],
    ]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    assert "test_gpu_memory.py" in shown
