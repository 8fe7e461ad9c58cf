"""Everything that a machine with a GPU is wanted for, in one go and under ten minutes: `make gpu`.

    python -m bench.gpu.all [--out DIR] [--data DIR] [--seconds 570] [--stages build tests sanitize bench]

For an environment of your own, without network: nothing is installed but this library, and nothing is fetched. It needs torch
with CUDA, nvcc, and the packages named in README.md. Each stage has a time limit, and all together have one. A stage that fails,
or runs past its time, does not stop the others; the exit status is 1 then. DIR gets a log of each stage, bench.md and summary.md.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Stage", "main", "run", "stages"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float  # at most; all together are more than there is, since most need less
    command: Sequence[str | Path]
    variables: dict[str, str] = field(default_factory=dict)


def stages(out: Path, data: Path | None) -> list[Stage]:
    python = sys.executable
    # No network: neither an environment of pip's own, nor dependencies. What is missing or too old for the build is named.
    offline = ["--disable-pip-version-check", "--no-build-isolation", "--check-build-dependencies", "--no-deps"]
    install = [python, "-m", "pip", "install", *offline, "--editable", "."]
    measure = [python, "-m", "bench.gpu", "--output", out / "bench.md", *(["--data", data] if data else [])]
    return [
        Stage("build", 180, install, {"RH_CUDA": "1", **_this_gpu()}),
        Stage("tests", 200, [python, "-m", "pytest", "tests/gpu", "-q", "--durations=15"]),
        Stage("sanitize", 110, [python, "-m", "bench.gpu.sanitize", "--seconds", "105"]),
        Stage("bench", 480, measure),
    ]


def capability() -> str:
    """Of the GPU at hand, such as 9.0; empty if torch sees none. Asked in a process of its own, which then lets go of the GPU."""
    ask = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _this_gpu() -> dict[str, str]:
    """Compiles for the GPU at hand alone, which is quicker, unless the user has said for which."""
    found = "" if "TORCH_CUDA_ARCH_LIST" in os.environ else capability()
    return {"TORCH_CUDA_ARCH_LIST": found} if found else {}


def run(chosen: Sequence[Stage], out: Path, seconds: float) -> list[str]:
    """Runs the stages, and writes a log of each and the summary after each. Returns the names of those that failed."""
    out.mkdir(parents=True, exist_ok=True)
    end, failed, lines = time.monotonic() + seconds, [], ["# On this GPU", ""]
    for stage in chosen:
        print(f"{stage.name} ...", flush=True)
        began, log = time.monotonic(), out / f"{stage.name}.log"
        ended = _run(stage, min(end - began, stage.seconds), log)
        if ended != "passed":
            failed.append(stage.name)
        ended = f"{stage.name}: {ended}, {time.monotonic() - began:.0f} s"
        tail = log.read_text(errors="replace").splitlines()[-15:]
        print("\n".join([*tail, ended]), flush=True)
        lines += [f"## {ended}", "", "```", *tail, "```", ""]
        (out / "summary.md").write_text("\n".join(lines))
    return failed


def _run(stage: Stage, seconds: float, log: Path) -> str:
    """How it ended."""
    # The bench ends by itself a little earlier, to write its report whole.
    more = ["--seconds", f"{seconds - 15:.0f}"] if stage.name == "bench" else []
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                [*stage.command, *more],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **stage.variables},
                timeout=max(seconds, 0.0),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return "ran past its time and was ended"
    return f"exit status {status}" if status else "passed"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["build", "tests", "sanitize", "bench"]
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="a folder for logs and results")
    parser.add_argument("--data", type=Path, help="a folder with cifar10/*.npz and text/*.txt")
    parser.add_argument("--seconds", type=float, default=570, help="for everything")
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    if options.stages != ["build"] and not capability():
        # The tests would skip, and seem to have passed.
        parser.error(f"no CUDA GPU that torch of {sys.executable} sees. `--stages build` builds without one")
    out = options.out.resolve()
    data = options.data.resolve() if options.data else None
    os.chdir(ROOT)
    failed = run([stage for stage in stages(out, data) if stage.name in options.stages], out, options.seconds)
    print(f"{out / 'summary.md'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
