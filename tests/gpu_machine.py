"""What tests/gpu need: a GPU, or a reason to skip."""

from __future__ import annotations

import pytest
import torch

# To be a module's `pytestmark`. A build without CUDA kernels on a machine with a GPU does not skip: it fails.
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: torch.cuda.is_available() is False"),
]
DEVICE = "cuda"


@pytest.fixture
def whole_float32():
    """Products in TF32, torch's default for convolutions, have three digits; with this they have float32's seven."""
    places = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    yield
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


@pytest.fixture
def no_synchronisation():
    """Whatever makes the host wait for the GPU raises an error inside ``with no_synchronisation():``."""

    class Forbidden:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *exception):
            torch.cuda.set_sync_debug_mode("default")

    yield Forbidden
    torch.cuda.set_sync_debug_mode("default")


class Captured:
    """What ``function`` launches, as a CUDA graph: a call replays it, and returns what ``function`` returned."""

    def __init__(self, function):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function()

    def __call__(self):
        self._graph.replay()
        return self._result
