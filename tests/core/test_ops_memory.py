"""Ops leave nothing behind in the heap: a few bytes at every step would pin holes between what a run allocates and frees."""

import ctypes
import gc
from collections.abc import Callable

import pytest
import torch

import reversible_hypergrad as rh


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _before = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
    _fields_ = [(name, ctypes.c_size_t) for name in (*_before, "uordblks", "fordblks", "keepcost")]


def heap_in_use() -> Callable[[], int]:
    try:
        read = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("the C library has no mallinfo2 (glibc 2.33 on), which counts the bytes of the heap that are in use")
    read.restype = MallInfo
    return lambda: int(read().uordblks)


@pytest.mark.parametrize("state_bits", [32, 64])
def test_steps_forward_and_back_leave_nothing_in_the_heap(state_bits: int) -> None:
    """Once Python's and torch's own free lists are full, which takes the first turns. 8 bytes for each of the three ops of a turn
    allow for what is kept once; a string left behind takes 48."""
    in_use, turns = heap_in_use(), 1000
    weight = torch.nn.Parameter(torch.ones(50))
    weight.grad = torch.ones(50)
    optimizer = rh.ReversibleSGD([weight], lr=0.1, momentum=1.0, state_bits=state_bits)

    def forward_and_back(times: int) -> int:
        gc.collect()
        before = in_use()
        for _ in range(times):
            optimizer.step()
            optimizer.step_back(lambda: None)
        gc.collect()
        return in_use() - before

    forward_and_back(turns)
    assert forward_and_back(turns) < 8 * 3 * turns
