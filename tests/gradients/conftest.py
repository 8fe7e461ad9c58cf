"""One thread: these models are too small for two, and waiting threads cost more than the work. A tape in place of CUDA graphs."""

from __future__ import annotations

import pytest
from tape import TapeGraphs

from reversible_hypergrad.gradients import captured


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)


@pytest.fixture
def tapes(monkeypatch):
    """Those that were made, in order."""
    made = []

    def make(device):
        made.append(TapeGraphs(device))
        return made[-1]

    monkeypatch.setattr(captured, "CudaGraphs", make)
    return made
