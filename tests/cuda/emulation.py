"""The CUDA kernels on the CPU: csrc/cuda/*.cu, as they are, compiled by the C++ compiler over emulated/cuda_runtime.h."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda" / "emulated"
TORCH = Path(torch.__file__).parent

# The device has no -fwrapv; leaving it out here lets the compiler use what it may, as nvcc may. A misaligned vector, which
# a GPU would refuse, stops the process here.
FLAGS = ["-std=c++17", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
CHECKS = ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"]
KERNELS = [*FLAGS, *CHECKS, "-Wno-unknown-pragmas", f"-I{HERE}"]
OPS = [*FLAGS, "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-isystem{TORCH / 'include'}"]
CSRC = ROOT / "csrc"
RULES = [path.stem for path in sorted((CSRC / "rules").glob("*.h")) if path.name != "rule.h"]
OBJECTS = {
    **{
        f"{part}_{rule}_{bits}": (
            HERE / f"{part}.cpp",
            [*KERNELS, f"-DRH_STATE_BITS={bits}", f"-DRH_RULE_FILE={rule}.h"],
        )
        for part, rule, bits in product(("kernels", "adjoint"), RULES, (64, 32))
    },
    "launches": (HERE / "launches.cpp", KERNELS),
    "ops": (HERE / "ops.cpp", OPS),
    "available": (CSRC / "cuda" / "available.cpp", OPS),
    "arguments": (CSRC / "torch" / "arguments.cpp", OPS),
    "arguments_adjoint": (CSRC / "torch" / "arguments_adjoint.cpp", OPS),
}


def library() -> Path:
    """Compiles the emulated ops, about 20 s, unless nothing has changed since the last time."""
    folder = ROOT / "build" / f"emulated-torch{torch.__version__}"
    target = folder / "emulated.so"
    sources = [Path(__file__), *(p for place in (HERE, ROOT / "csrc") for p in place.rglob("*") if p.is_file())]
    if target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in sources):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "g++")

    def compile_object(name: str) -> str:
        source, flags = OBJECTS[name]
        output = str(folder / f"{name}.o")
        _call([compiler, *flags, "-c", str(source), "-o", output])
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_object, OBJECTS))
    link = ["-shared", "-static-libubsan", *CHECKS, f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    _call([compiler, *objects, *link, "-o", str(target)])
    return target


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
