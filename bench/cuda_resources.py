"""Registers, spills and width of memory accesses of the CUDA kernels, as the compiler reports them: `make cuda-resources`.

Writes bench/results/cuda_resources.md. Needs nvcc, no GPU. Fails if a kernel spills registers or uses a stack.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "cuda_resources.md"
GPUS = ("80", "90", "100")
SOURCES = ("kernels", "adjoint")
WIDTHS = (64, 32)
RULES = {path.name: path.stem for path in sorted((ROOT / "csrc" / "rules").glob("*.h")) if path.name != "rule.h"}
# By phase and adjoint; the type of an adjoint is that of its vectors.
KERNELS = {
    "0": "step, or its part of the weights",
    "1": "undo weights",
    "3": "undo states",
    "1f": "undo weights, with adjoint of float32",
    "3f": "undo states, with adjoint of float32",
    "1d": "undo weights, with adjoint of float64",
    "3d": "undo states, with adjoint of float64",
}
FLAGS = ["--fmad=false", "-std=c++17", "-O3", "-Xcompiler=-Wno-unknown-pragmas"]
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<gpu>\d+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes "
    r"spill stores, (?P<loads>\d+) bytes spill loads\n.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
NAME = re.compile(r"PhaseE(?P<phase>\d)ENS\d_(?:9NoAdjoint|11StepAdjointI(?P<adjoint>[fd])E)ELi(?P<table>\d+)")
ADDING = "add_partials"  # of the blocks' sums; it does not depend on the weights
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.wb)?(\.v\d)?\.[a-z](\d+)")


def nvcc(rule: str, source: str, bits: int, options: list[str], target: Path) -> str:
    path = ROOT / "csrc" / "cuda" / f"{source}.cu"
    defines = [f"-DRH_STATE_BITS={bits}", f"-DRH_RULE_FILE={rule}"]
    done = subprocess.run(["nvcc", *FLAGS, *options, *defines, str(path), "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stderr


def compiling() -> float:
    """CPU seconds of all compilers so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resources(rule: str, bits: int, folder: Path) -> tuple[dict[tuple[str, str], str], dict[str, float]]:
    """Registers by kernel and GPU, of the small table (those with the large one differ in the table alone); and the CPU
    seconds that each source takes to compile."""
    registers, seconds = {}, {}
    options = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in GPUS]
    for source in SOURCES:
        start = compiling()
        report = nvcc(rule, source, bits, ["-c", "-Xptxas=-v", *options], folder / f"{source}{bits}.o")
        seconds[source] = compiling() - start
        for match in REPORT.finditer(report):
            if match["stack"] != "0" or match["stores"] != "0" or match["loads"] != "0":
                raise SystemExit(f"{rule}, state of {bits} bits: {match['name']} on sm_{match['gpu']} spills registers")
            name = NAME.search(match["name"])
            assert name is not None or ADDING in match["name"], match["name"]
            if name is not None and name["table"] == "4096":
                registers[name["phase"] + (name["adjoint"] or ""), match["gpu"]] = match["registers"]
    return registers, seconds


def accesses(rule: str, bits: int, folder: Path) -> dict[tuple[str, int], int]:
    """How many instructions of the compiler's PTX load and store so many bytes, all kernels together."""
    counts: dict[tuple[str, int], int] = {}
    for source in SOURCES:
        target = folder / f"{source}{bits}.ptx"
        nvcc(rule, source, bits, ["-ptx", "-arch=compute_90"], target)
        for kind, vector, width in ACCESS.findall(target.read_text()):
            size = int(width) // 8 * int(vector[2:] or 1)
            counts[kind, size] = counts.get((kind, size), 0) + 1
    return counts


def report_of(rule: str, folder: Path) -> list[str]:
    """The tables of one rule."""
    used = {bits: resources(rule, bits, folder) for bits in WIDTHS}
    lines = [
        f"## {RULES[rule]}",
        "",
        "Registers per thread, on " + ", ".join(f"sm_{gpu}" for gpu in GPUS) + ":",
        "",
        "| kernel | 64-bit state | 32-bit state |",
        "|---|---|---|",
    ]
    for key, kernel in KERNELS.items():
        cells = [", ".join(used[bits][0][key, gpu] for gpu in GPUS) for bits in WIDTHS]
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    for source in SOURCES:
        cells = [f"{used[bits][1][source]:.0f} s" for bits in WIDTHS]
        lines.append(f"| CPU time to compile {source}.cu | {' | '.join(cells)} |")
    lines += [
        "",
        "Instructions that access global memory, by their bytes, all kernels together (PTX). A whole block moves its state in",
        "16 bytes per thread and row, float32 weights and gradients in 8 (64-bit state) or 16; the narrower ones are of ragged",
        "blocks, of tensors that do not stand on a multiple of 16 bytes, and of planes.",
        "",
        "| | 1 | 2 | 4 | 8 | 16 bytes |",
        "|---|---|---|---|---|---|",
    ]
    for bits in WIDTHS:
        counts = accesses(rule, bits, folder)
        for kind, what in (("ld", "loads"), ("st", "stores")):
            cells = [str(counts.get((kind, n), 0)) for n in (1, 2, 4, 8, 16)]
            lines.append(f"| {bits}-bit state, {what} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = version.split("release ")[1].split(",")[0]
    lines = [
        "# Resources of the CUDA kernels",
        "",
        f"Compiler's report, nvcc {release}, by `make cuda-resources`. 128 threads per block; no kernel spills registers or has",
        "a stack frame. Every kernel moves weights of all four dtypes.",
    ]
    with tempfile.TemporaryDirectory() as place:
        for rule in RULES:
            lines += ["", *report_of(rule, Path(place))]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text(), file=sys.stdout)


if __name__ == "__main__":
    main()
