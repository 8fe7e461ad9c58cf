"""Registers, spills and width of memory accesses of the CUDA kernels, as the compiler reports them: `make cuda-resources`.

Writes bench/results/cuda_resources.md. Needs nvcc, no GPU. Fails if a kernel spills registers or uses a stack.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "cuda_resources.md"
GPUS = ("80", "90", "100")
SOURCES = ("kernels", "adjoint")
PHASES = {
    "0": "step",
    "1": "undo or redo weights",
    "3": "undo velocity",
    "1 with adjoint": "undo weights, with adjoint",
    "3 with adjoint": "undo velocity, with adjoint",
}
TYPES = {"f": "float32", "d": "float64", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}
FLAGS = ["--fmad=false", "-std=c++17", "-O3", "-Xcompiler=-Wno-unknown-pragmas"]
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<gpu>\d+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes "
    r"spill stores, (?P<loads>\d+) bytes spill loads\n.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
NAME = re.compile(r"PhaseE(?P<phase>\d)E(?P<type>.*?)NS\d_(?:5Alone|(?P<adjoint>11WithAdjoint))ELi(?P<table>\d+)")
ADDING = "add_partials"  # of the blocks' sums; it does not depend on the weights
ACCESS = re.compile(r"\b(ld|st)\.global(\.v\d)?\.[a-z](\d+)")


def nvcc(source: str, bits: int, options: list[str], target: Path) -> str:
    path = ROOT / "csrc" / "cuda" / f"{source}.cu"
    command = ["nvcc", *FLAGS, *options, f"-DRH_STATE_BITS={bits}", str(path), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stderr


def resources(bits: int, folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """By phase, type and GPU; of the kernels with the small table, those with the large one differ in the table alone."""
    found = {}
    options = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in GPUS]
    reports = "".join(nvcc(source, bits, ["-c", "-Xptxas=-v", *options], folder / f"{source}{bits}.o") for source in SOURCES)
    for match in REPORT.finditer(reports):
        if match["stack"] != "0" or match["stores"] != "0" or match["loads"] != "0":
            raise SystemExit(f"state of {bits} bits, {match['name']} on sm_{match['gpu']} spills registers")
        name = NAME.search(match["name"])
        assert name is not None or ADDING in match["name"], match["name"]
        if name is not None and name["table"] == "4096":
            phase = PHASES[name["phase"] + (" with adjoint" if name["adjoint"] else "")]
            found[phase, TYPES[name["type"]], match["gpu"]] = match.groupdict()
    return found


def accesses(bits: int, folder: Path) -> dict[tuple[str, int], int]:
    """How many instructions of the compiler's PTX load and store so many bytes, all kernels together."""
    counts: dict[tuple[str, int], int] = {}
    for source in SOURCES:
        target = folder / f"{source}{bits}.ptx"
        nvcc(source, bits, ["-ptx", "-arch=compute_90"], target)
        for kind, vector, width in ACCESS.findall(target.read_text()):
            size = int(width) // 8 * int(vector[2:] or 1)
            counts[kind, size] = counts.get((kind, size), 0) + 1
    return counts


def main() -> None:
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(place)
        used = dict(zip((64, 32), pool.map(lambda bits: resources(bits, folder), (64, 32)), strict=True))
        moved = {bits: accesses(bits, folder) for bits in (64, 32)}
    version = (
        subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
        .stdout.split("release ")[1]
        .split(",")[0]
    )
    lines = [
        "# Resources of the CUDA kernels",
        "",
        f"Compiler's report, nvcc {version}, by `make cuda-resources`. 128 threads per block; no kernel spills registers or has",
        "a stack frame.",
        "Registers per thread, on " + ", ".join(f"sm_{gpu}" for gpu in GPUS) + ":",
        "",
        "| kernel | weights | 64-bit state | 32-bit state |",
        "|---|---|---|---|",
    ]
    for phase in PHASES.values():
        for dtype in TYPES.values():
            cells = [", ".join(used[bits][phase, dtype, gpu]["registers"] for gpu in GPUS) for bits in (64, 32)]
            lines.append(f"| {phase} | {dtype} | {' | '.join(cells)} |")
    lines += [
        "",
        "Instructions that access global memory, by their bytes, all kernels together (PTX). A whole block moves its state in",
        "16 bytes per thread and row, float32 weights and gradients in 8 (64-bit state) or 16; the narrower ones are of ragged",
        "blocks, of tensors that do not stand on a multiple of 16 bytes, and of spills.",
        "",
        "| | 1 | 2 | 4 | 8 | 16 bytes |",
        "|---|---|---|---|---|---|",
    ]
    for bits, counts in moved.items():
        for kind, what in (("ld", "loads"), ("st", "stores")):
            lines.append(
                f"| {bits}-bit state, {what} | " + " | ".join(str(counts.get((kind, n), 0)) for n in (1, 2, 4, 8, 16)) + " |"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text(), file=sys.stdout)


if __name__ == "__main__":
    main()
