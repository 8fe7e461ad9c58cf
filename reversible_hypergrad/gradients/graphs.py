"""CUDA graphs: what a function launches is captured once, and launched again as a whole."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import finalize

import torch
from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["CudaGraphs", "Graphs", "cannot_be_captured"]

T = TypeVar("T")


class Graphs(Protocol):
    """What captures functions and replays them."""

    def eagerly(self, function: Callable[[], T]) -> T:
        """Calls ``function`` as the warm-up of a capture, which it is. The tensors in its result may be used at once."""

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Calls ``function`` without executing anything on the device.

        Returns:
            Its result, whose tensors hold nothing yet, and a function that executes, and so writes them, each time it is called.
            Whatever memory ``function`` read must stay, and be written in place.

        Raises:
            RuntimeError: if it cannot be captured. Other graphs are as they were.
        """

    def close(self) -> None:
        """Lets all graphs go; none of them may be replayed any more."""


class CudaGraphs(Graphs):
    """Of one device, all captured on one stream, with one pool of memory.

    Autograd runs a backward on the stream that its forward was on, and so do the nodes where gradients arrive at leaves, which
    live as long as any graph that holds them. So whatever touches the graphs' leaves comes through here, warm-up included: a
    node that was made on another stream would draw that stream into a capture and spoil it.

    Graphs that share a pool may lie over each other's temporary memory. Each writes all it needs before it reads it, from
    tensors outside of the pool; the products alone read what the evaluation before them has left.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"cuda_graph: expected the model's weights on a CUDA device, got {device}. Move the model there, or leave "
                "cuda_graph=True out"
            )
        self._device = device
        idle = _IDLE.setdefault(device, [])
        self._stream = idle.pop() if idle else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []
        finalize(self, _retire, device, idle, self._stream, self._graphs).atexit = False

    def eagerly(self, function: Callable[[], T]) -> T:
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                result = function()
        finally:
            outside.wait_stream(self._stream)
        for leaf in pytree.leaves(result):
            if isinstance(leaf, Tensor):
                leaf.record_stream(outside)  # or its memory may be given to this stream while the other one still reads it
        return result

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # what is cached for ordinary work cannot serve a graph's pool
        with _without_garbage_collection(), torch.cuda.stream(self._stream):
            # Not "global": a loader's thread may be page-locking memory meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = function()
                graph.capture_end()
            except BaseException as error:
                self._abandon(graph)
                if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                    raise RuntimeError(cannot_be_captured(error)) from error
                raise
        self._graphs.append(graph)
        return result, graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a capture that has failed, and makes good what torch leaves behind where a capture does not end well."""
        try:
            graph.capture_end()
            return
        except RuntimeError:  # it was invalid; the stream is out of it all the same
            pass
        # Up to here the allocator takes the capture to go on, and asks the graph about every allocation.
        _ABANDONED.append(graph)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with suppress(AttributeError, RuntimeError):  # where torch has done it already
                getattr(torch._C, name)(torch.cuda.current_device(), self._pool)
        # So does the generator of random numbers (in torch 2.11, say), until a capture ends well.
        with suppress(RuntimeError):
            scratch, spare = torch.zeros((), device=self._device), torch.cuda.CUDAGraph()
            spare.capture_begin(capture_error_mode="thread_local")
            scratch.add_(1)
            spare.capture_end()

    def close(self) -> None:
        if self._graphs:
            _destroy(self._device, self._graphs)
            self._pool = torch.cuda.graph_pool_handle()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """It might destroy the graphs of another run, which waits for the GPU, and so spoil a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _destroy(device: torch.device, graphs: list[torch.cuda.CUDAGraph]) -> None:
    if graphs:
        torch.cuda.synchronize(device)  # not while one of them runs
        graphs.clear()


def _retire(device: torch.device, idle: list[Any], stream: torch.cuda.Stream, graphs: list[torch.cuda.CUDAGraph]) -> None:
    _destroy(device, graphs)
    idle.append(stream)


# Streams of earlier runs: cuBLAS keeps a workspace of some 32 MB for every stream that it has ever seen.
_IDLE: dict[torch.device, list[torch.cuda.Stream]] = {}
_ABANDONED: list[torch.cuda.CUDAGraph] = []  # the allocators hold pointers to them, so they must not be destroyed


def cannot_be_captured(error: RuntimeError) -> str:
    said = str(error).split("\n")[0]
    return (
        "cuda_graph: the loss or the model does something that a CUDA graph cannot hold, most often because the host must wait "
        "for a number of the GPU's: .item(), float(tensor), a branch on a tensor's value, a boolean mask as an index, nonzero(), "
        "or torch.tensor(number, device=...), which copies one over. Move it to `batches`, make the tensor before training and "
        f"pass it in hyperparameters=, or leave cuda_graph=True out. Torch says: {said}"
    )
