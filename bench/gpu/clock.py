"""Times and peak memory of work on a GPU, by CUDA events; of the CPU's, by the wall clock."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["Clock", "quartiles"]

_HEAD_START = 2_000_000  # clock cycles, about a millisecond, in which the host gets ahead of the GPU


class Clock:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def device_seconds(self, call: Callable[[], object]) -> float:
        """From the first kernel's turn to the last one's end. The GPU is kept busy before, so that launches do not count."""
        if not self.cuda:
            return self.wall_seconds(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HEAD_START)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wall_seconds(self, call: Callable[[], object]) -> float:
        """With everything, until the GPU is idle again."""
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def reset_peak(self) -> None:
        gc.collect()
        if self.cuda:
            self.wait()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        """GB, at most, that tensors took since :meth:`reset_peak`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.cuda else 0.0


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high
