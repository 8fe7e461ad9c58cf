"""Amounts of memory: what is free, what a user writes, what a table shows."""

import os
import re
from pathlib import Path

import torch
from tqdm import tqdm

__all__ = ["Budget", "bytes_of", "free_bytes", "shown"]

Budget = int | float | str

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SHARE = 0.9  # of what is free: the rest is for activations and for others


def bytes_of(budget: Budget) -> float:
    """A number of bytes, or text such as "500 MB" or "2 GiB"."""
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", budget.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"budget: expected a number of bytes, or text such as '500 MB' or '2 GiB', got {budget!r}")
        budget = float(match[1]) * _UNITS[match[2]]
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget: expected a number of bytes, or text such as '500 MB', got {budget!r}")
    if not budget > 0:
        raise ValueError(f"budget: expected more than 0 bytes, got {budget}")
    return float(budget)


def free_bytes(device: torch.device) -> float:
    """Nine tenths of what is free on ``device`` now."""
    if device.type == "cuda":
        return _SHARE * torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.exists():  # Linux: memory that caches give back counts as free
        fields = dict(line.split(":") for line in info.read_text().splitlines())
        return _SHARE * 1024 * int(fields["MemAvailable"].split()[0])
    return _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def shown(amount: float) -> str:
    return f"{tqdm.format_sizeof(amount)}B"
