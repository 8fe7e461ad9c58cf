"""Nanoseconds per value and decay of both codecs, compiled alike for the machine at hand."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.codecs.rational import FORMATS, VALUES, approximate, plan_push
from bench.timing import in_turns
from reversible_hypergrad.core import LazyScale

LANES = 64
STEPS = 60  # decays one after the other, then undone: several spills, several halvings
MATH = ["-ffp-contract=off", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]
FLAGS = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", *MATH]
Array = np.ndarray[Any, Any]


def compiled() -> ctypes.CDLL:
    """codecs.cpp, by $CXX or g++."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "codecs.so"
        compiler = os.environ.get("CXX", "g++")
        subprocess.run([compiler, *FLAGS, str(Path(__file__).with_name("codecs.cpp")), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


class Rational:
    """Decays of one array by n/d, forth and back."""

    def __init__(self, library: ctypes.CDLL, values: Array, momentum: float) -> None:
        bits = 8 * values.itemsize
        fraction = approximate(momentum, bits)
        self.n, self.d = fraction.numerator, fraction.denominator
        self.contract, self.expand = library[f"rational_contract_{bits}"], library[f"rational_expand_{bits}"]
        self.values, self.blocks = values, values.size // (VALUES * LANES)
        self.accumulators: Array = np.zeros(self.blocks * LANES, np.dtype(f"uint{bits}"))
        bound, self.log = 1, []
        for _ in range(STEPS):
            spill: Array = np.zeros(VALUES, np.int32)
            for row in range(VALUES):
                bound, spill[row] = plan_push(bound, self.n, self.d, FORMATS[bits].capacity)
            self.log.append((spill, np.zeros(np.count_nonzero(spill) * self.blocks * LANES + 1, np.uint16)))

    def decay(self) -> None:
        for spill, planes in self.log:
            self._call(self.contract, spill, planes)

    def undo(self) -> None:
        for spill, planes in reversed(self.log):
            self._call(self.expand, spill, planes)

    def _call(self, function: Any, spill: Array, planes: Array) -> None:
        size, n, d = map(ctypes.c_int64, (self.blocks, self.n, self.d))
        function(_pointer(self.values), _pointer(self.accumulators), size, n, d, _pointer(spill), _pointer(planes))


class Planes:
    """Decays of one array by a lazy scale, forth and back."""

    def __init__(self, library: ctypes.CDLL, values: Array, momentum: float) -> None:
        bits = 8 * values.itemsize
        self.contract, self.expand = library[f"planes_contract_{bits}"], library[f"planes_expand_{bits}"]
        self.values, scale = values, LazyScale()
        moves = [scale.decay(momentum) for _ in range(STEPS)]
        self.log = [(*move, np.zeros(move[0] * values.size // 8, np.uint8)) for move in moves]

    def decay(self) -> None:
        for move in self.log:
            self._call(self.contract, *move)

    def undo(self) -> None:
        for move in reversed(self.log):
            self._call(self.expand, *move)

    def _call(self, function: Any, shift: int, centre: int, planes: Array) -> None:
        if shift:
            size = ctypes.c_int64(self.values.size)
            function(_pointer(self.values), size, ctypes.c_int32(shift), ctypes.c_int64(centre), _pointer(planes))


def _pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def measure(library: ctypes.CDLL, weights: int, momentum: float, turns: int) -> dict[tuple[str, int], list[float]]:
    """By codec and state bits, seconds per decay of all values, forth and back together, for each turn."""
    size = max(1, weights // (VALUES * LANES)) * VALUES * LANES
    candidates: dict[str, Callable[[], object]] = {}
    checks = []
    for bits in (64, 32):
        start = np.random.default_rng(0).integers(-(2**29), 2**29, size).astype(np.dtype(f"int{bits}"))
        for codec in (Rational, Planes):
            run = codec(library, start.copy(), momentum)
            candidates[f"{codec.__name__} {bits}"] = lambda run=run: (run.decay(), run.undo())
            checks.append((run, start))
    timed = in_turns(candidates, turns)
    for run, start in checks:
        np.testing.assert_array_equal(run.values, start)
    names = {name: (name.split()[0], int(name.split()[1])) for name in timed}
    return {names[name]: [second / STEPS for second in seconds] for name, seconds in timed.items()}
