"""Timing that holds on a noisy machine: candidates take turns in one process, and ratios are taken turn by turn."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["conditions", "in_turns", "median", "ratio", "when"]


def in_turns(candidates: dict[str, Callable[[], object]], turns: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, one call of each candidate per turn, so that a slow phase of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + turns):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def ratio(samples: list[float], baseline: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratio turn by turn."""
    ratios = sorted(a / b for a, b in zip(samples, baseline, strict=True))
    if len(ratios) < 4:
        return ratios[0], statistics.median(ratios), ratios[-1]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


def conditions(threads: int | None = None) -> str:
    """The machine and versions, in one line. ``threads``: of the measured processes, if they are others than this one."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text().split("\n\n")[0]
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
        family = f" family {known['cpu family']} model {known['model']}" if "cpu family" in known else ""
        model = known.get("model name", model) + family
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    used = threads or torch.get_num_threads()
    return (
        f"{model}, {os.cpu_count()} cores, {gibibytes:.0f} GiB, {used} thread{'s' if used > 1 else ''}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    )


def when() -> str:
    """The day, and how many processes ran in the last minute, this one among them."""
    return f"{time.strftime('%Y-%m-%d')}, load {os.getloadavg()[0]:.2f}"
