"""The library's kernels under NVIDIA's compute-sanitizer on a GPU: `make test-gpu-sanitize`.

    python -m bench.gpu.sanitize [--tools memcheck racecheck] [--seconds 150]

Runs the tests marked `sanitize` once under each tool. memcheck sees accesses outside of a tensor, even reads, and misaligned
ones; racecheck sees threads of a block that do not wait for each other's shared memory; synccheck and initcheck are there, too.
Only this library's kernels are checked: torch's own are many, and would take most of the time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from reversible_hypergrad.core import cuda_in_build

__all__ = ["command", "find", "main"]

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Else a tensor is a piece of a larger allocation of torch's, and an access beside it is inside of that.
VARIABLES = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_ERRORS_FOUND = 86  # the status then


def find() -> Path | None:
    """compute-sanitizer, which comes with the CUDA toolkit: on the PATH, or under CUDA_HOME, CUDA_PATH or /usr/local/cuda."""
    on_path = shutil.which("compute-sanitizer")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / folder / "compute-sanitizer" for home in homes if home for folder in ("bin", "compute-sanitizer")]
    candidates = [*([Path(on_path)] if on_path else []), *places]
    return next((place for place in candidates if place.is_file()), None)


def command(sanitizer: Path, tool: str) -> list[str | Path]:
    # Mangled names of everything in the namespace rh begin so. Torch calls CUDA where an error is an answer, and goes on.
    only = ["--kernel-name", "kernel_substring=_ZN2rh"]
    memory = ["--report-api-errors", "no", "--padding", "64"] if tool == "memcheck" else []
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "sanitize", "tests/gpu"]
    return [sanitizer, "--tool", tool, *only, *memory, "--launch-timeout", "60", "--error-exitcode", str(_ERRORS_FOUND), *tests]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    parser.add_argument("--seconds", type=float, default=150, help="for all tools together")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU: torch.cuda.is_available() is False. Run it where there is one; `make test` needs none")
    if not cuda_in_build():
        parser.error("this build has no CUDA kernels, since no nvcc was found. Build again where nvcc is on the PATH")
    sanitizer = find()
    if sanitizer is None:
        parser.error(
            "compute-sanitizer: not found on the PATH, nor under CUDA_HOME, CUDA_PATH or /usr/local/cuda. It comes with the CUDA "
            "toolkit; set CUDA_HOME to where that is, or pip install nvidia-cuda-sanitizer-api and put its bin folder on the PATH"
        )
    end, results = time.monotonic() + options.seconds, {}
    for tool in options.tools:
        print(f"{tool} ...", flush=True)
        results[tool] = _run(command(sanitizer, tool), end - time.monotonic())
    print("\n".join(f"{tool}: {ended}" for tool, ended in results.items()))
    return 0 if set(results.values()) == {"passed"} else 1


def _run(tool: list[str | Path], seconds: float) -> str:
    """How it ended."""
    try:
        status = subprocess.run(tool, env={**os.environ, **VARIABLES}, timeout=max(seconds, 0.0), check=False).returncode
    except subprocess.TimeoutExpired:
        return "ran past its time and was ended"
    found = ": the tool found errors in a kernel, see above" if status == _ERRORS_FOUND else ""
    return f"exit status {status}{found}" if status else "passed"


if __name__ == "__main__":
    sys.exit(main())
