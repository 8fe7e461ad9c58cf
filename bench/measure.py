"""One hypergradient by one method at one number of steps, measured in a process of its own.

    python -m bench.measure rh.Reversible --steps 1000 [--model mlp] [--penalties weight] [--reference FILE]

Prints one line of JSON: CPU and wall-clock seconds of forward and backward together, wall-clock seconds of a warm-up of three
steps before them (of those -compiled, what it takes to compile), peak resident memory (MB; Linux, else 0),
and the relative error against the hypergradient in FILE. Memory is counted twice: ``megabytes`` above the process with what a
warm-up of three steps freed given back, so that the workspace of a step counts; ``megabytes_beyond_warm_up`` above the process
as the warm-up leaves it, so that only what grows with the number of steps does.

``measured`` does the same from Python under limits of time and memory. ``reference`` makes FILE: float64, written by hand with
checkpoints, independent of the library.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.handwritten import checkpoints
from bench.methods import METHODS, Method
from bench.tasks import PENALTIES, Task, Weights

__all__ = ["LeftOut", "measure", "measured", "reference", "resident"]

WARM_UP_STEPS = 3
# Short runs are repeated until this much time has passed; their median counts.
ENOUGH_SECONDS, MOST_RUNS = 0.3, 20

# Each process is a fork of a server that has imported everything and computed nothing, so it starts fresh and at once. The
# last two are what torch imports, for seconds, at the first second derivative and the first pinned setting.
_PROCESSES: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
if hasattr(_PROCESSES, "set_forkserver_preload"):
    _PROCESSES.set_forkserver_preload([__name__, "sympy", "torch._dynamo"])


class LeftOut(Exception):
    """A point that was not measured, and why."""


def measure(task: Task, method: Method, steps: int, exact: Weights | None = None) -> dict[str, float]:
    """In this process, on one thread."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    method(task, WARM_UP_STEPS)
    warm_up = time.perf_counter() - began
    gc.collect()
    warm = resident("VmRSS")
    base = _give_back()
    seconds, hypergradient = _timed(method, task, steps)
    peak = resident("VmHWM")
    result = {"megabytes": (peak - base) / 1e6, "megabytes_beyond_warm_up": max(0, peak - warm) / 1e6}
    result["warm_up_seconds"] = warm_up
    runs = [seconds]
    while sum(cpu for cpu, _ in runs) < ENOUGH_SECONDS and len(runs) < MOST_RUNS:
        runs.append(_timed(method, task, steps)[0])
    result["cpu_seconds"], result["wall_seconds"] = sorted(runs)[len(runs) // 2]
    if exact is not None:
        result["error"] = relative_error(hypergradient, exact)
    return result


def relative_error(hypergradient: Weights, exact: Weights) -> float:
    difference = sum(float((a.double() - b).square().sum()) for a, b in zip(hypergradient, exact, strict=True))
    return float((difference / sum(float(b.square().sum()) for b in exact)) ** 0.5)


def measured(
    method: str,
    steps: int,
    *,
    model: str = "mlp",
    penalties: str = "weight",
    exact: Path | None = None,
    seconds: float | None = None,
    gigabytes: float | None = None,
) -> dict[str, float]:
    """:func:`measure` in a process of its own, which is ended when it passes ``seconds`` or ``gigabytes``.

    Raises:
        LeftOut: with the reason, if there is no result: a limit, or the error that the method stopped with.
    """
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_send, args=(sender, method, steps, model, penalties, exact), daemon=True)
    process.start()
    sender.close()
    try:
        result = _wait(receiver, process.pid, seconds, gigabytes)
    except EOFError:
        process.join()
        raise LeftOut(f"failed: exit status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, str):
        raise LeftOut(f"failed: {result}")
    return result


def _wait(receiver: Connection, pid: int | None, seconds: float | None, gigabytes: float | None) -> dict[str, float] | str:
    # Resident memory is watched, not limited by the system: a limit on address space counts what is never touched.
    began = time.monotonic()
    while not receiver.poll(0.05):
        if seconds is not None and time.monotonic() - began > seconds:
            raise LeftOut(f"ran past {seconds:g} s")
        if gigabytes is not None and pid is not None and resident("VmRSS", pid) > 1e9 * gigabytes:
            raise LeftOut(f"passed {gigabytes:g} GB")
    return receiver.recv()  # type: ignore[no-any-return]


def _send(sender: Connection, method: str, steps: int, model: str, penalties: str, exact: Path | None) -> None:
    try:
        expected = torch.load(exact, weights_only=True) if exact is not None and method != "training" else None
        result: Any = measure(Task(model, penalties=penalties), METHODS[method], steps, expected)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"[:200]
    sender.send(result)


@cache
def reference(model: str, penalties: str, steps: int, folder: Path | None = None) -> Path:
    """The file of the exact hypergradient, made once and kept in ``folder`` (the system's temporary one if None)."""
    folder = folder or Path(tempfile.gettempdir()) / "reversible_hypergrad-references"
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(model, torch.float64, penalties)
    # A model of the user's may change between two calls: the name of the file holds its weights and what it computes.
    known = hashlib.sha256(torch.__version__.encode())
    for tensor in (*task.start(), *task.penalty, task.training_loss(task.start(), 0)):
        known.update(tensor.detach().numpy().tobytes())
    path = folder / f"{known.hexdigest()[:16]}-{steps}.pt"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}")  # another bench may be making the same file
        torch.save(checkpoints(task, steps), unfinished)
        unfinished.replace(path)
    return path


def _timed(method: Method, task: Task, steps: int) -> tuple[tuple[float, float], Weights]:
    cpu, wall = time.process_time(), time.perf_counter()
    hypergradient = method(task, steps)
    return (time.process_time() - cpu, time.perf_counter() - wall), hypergradient


def _give_back() -> int:
    """Gives freed memory back, so that its use again counts; resets the peak, and returns the resident bytes."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return resident("VmRSS")


def resident(field: str, process: int | str = "self") -> int:
    """VmRSS (now) or VmHWM (peak) in bytes; 0 where there is no /proc, or the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":")), 0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", default="mlp", help="mlp, medium, small, cnn or MODULE:FUNCTION")
    parser.add_argument("--penalties", choices=PENALTIES, default="weight")
    parser.add_argument("--reference", type=Path, help="a file of the exact hypergradient")
    options = parser.parse_args(arguments)
    exact = torch.load(options.reference, weights_only=True) if options.reference and options.method != "training" else None
    print(json.dumps(measure(Task(options.model, penalties=options.penalties), METHODS[options.method], options.steps, exact)))


if __name__ == "__main__":
    main()
