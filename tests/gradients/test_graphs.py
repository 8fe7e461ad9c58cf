"""How CudaGraphs uses torch.cuda, which is played here: the order of calls, and what it does where a capture fails."""

from __future__ import annotations

import pytest
import torch

from reversible_hypergrad.gradients import graphs
from reversible_hypergrad.gradients.graphs import CudaGraphs

GPU = torch.device("cuda", 0)


class Played:
    """torch.cuda with one device. What is called is noted in order."""

    def __init__(self):
        self.calls = []
        self.stream_now = Stream(self, "the caller's")
        self.fails_to_end = False
        self.streams = 0

    def install(self, monkeypatch):
        for name in ("Stream", "stream", "current_stream", "current_device", "CUDAGraph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.calls.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append("empty cache"))
        monkeypatch.setattr(torch, "zeros", lambda *args, device: torch.ones(()))
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(
                torch._C, name, lambda device, pool, name=name: self.calls.append((name, device, pool)), raising=False
            )
        monkeypatch.setattr(graphs, "_ABANDONED", [])
        monkeypatch.setattr(graphs, "_IDLE", {})
        return self

    def Stream(self, device):
        assert device == GPU
        self.streams += 1
        return Stream(self, "its own")

    def current_stream(self, device):
        return self.stream_now

    def current_device(self):
        return 0

    def graph_pool_handle(self):
        return (0, 7)

    def CUDAGraph(self):
        return Graph(self)

    def stream(self, stream):
        played = self

        class Context:
            def __enter__(self):
                self.before, played.stream_now = played.stream_now, stream

            def __exit__(self, *exception):
                played.stream_now = self.before

        return Context()


class Stream:
    def __init__(self, played, name):
        self.played, self.name = played, name

    def wait_stream(self, other):
        self.played.calls.append(f"{self.name} waits for {other.name}")


class Graph:
    def __init__(self, played):
        self.played = played

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self.played.calls.append(("begin", self.played.stream_now.name, pool, capture_error_mode))

    def capture_end(self):
        self.played.calls.append("end")
        if self.played.fails_to_end:
            self.played.fails_to_end = False
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        self.played.calls.append(("replay", self.played.stream_now.name))


@pytest.fixture
def played(monkeypatch):
    return Played().install(monkeypatch)


BEGIN = ("begin", "its own", (0, 7), "thread_local")


def test_captured_on_its_own_stream_and_replayed_on_the_callers(played):
    made = CudaGraphs(GPU)
    result, replay = made.capture(lambda: played.stream_now.name)
    assert result == "its own"
    replay()
    assert played.calls == ["synchronize", "empty cache", BEGIN, "end", ("replay", "the caller's")]
    played.calls.clear()
    made.close()
    made.close()
    assert played.calls == ["synchronize"]


def test_streams_are_used_again_but_not_by_two_at_a_time(played):
    for _ in range(3):
        made = CudaGraphs(GPU)
        made.capture(lambda: None)
        del made
        assert played.calls[-1] == "synchronize"  # its graph must not be destroyed while it runs
    assert played.streams == 1
    first, second = CudaGraphs(GPU), CudaGraphs(GPU)
    assert played.streams == 2
    del first, second


@pytest.mark.parametrize("fails", [False, True])
def test_a_warm_up_is_between_what_came_and_what_comes(played, fails):
    def function():
        played.calls.append(f"on {played.stream_now.name}")
        if fails:
            raise KeyError("lost")
        return 5

    made = CudaGraphs(GPU)
    if fails:
        with pytest.raises(KeyError):
            made.eagerly(function)
    else:
        assert made.eagerly(function) == 5
    assert played.calls == ["its own waits for the caller's", "on its own", "the caller's waits for its own"]
    assert played.stream_now.name == "the caller's"


def invalid():
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand so on")


def test_a_capture_that_becomes_invalid(played):
    """The first error is told, the allocator is told that it is over, and a capture that ends well puts the generator right."""
    played.fails_to_end = True
    with pytest.raises(
        RuntimeError, match=r"cuda_graph: .*Torch says: CUDA error: operation not permitted.*capturing$"
    ) as caught:
        CudaGraphs(GPU).capture(invalid)
    assert "and so on" in str(caught.value.__cause__)
    assert played.stream_now.name == "the caller's"
    ends = [("_cuda_endAllocateToPool", 0, (0, 7)), ("_cuda_releasePool", 0, (0, 7))]
    assert played.calls[2:] == [BEGIN, "end", *ends, ("begin", "its own", None, "thread_local"), "end"]
    assert len(graphs._ABANDONED) == 1


def test_a_capture_that_cannot_end(played):
    played.fails_to_end = True
    with pytest.raises(RuntimeError, match="Torch says: operation failed due to a previous error"):
        CudaGraphs(GPU).capture(lambda: None)
    assert played.stream_now.name == "the caller's"


@pytest.mark.parametrize("error", [KeyError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_other_errors_come_through(played, error):
    def function():
        raise error("of the loss")

    with pytest.raises(error, match="of the loss"):
        CudaGraphs(GPU).capture(function)
    assert played.calls[2:] == [BEGIN, "end"]  # it ended well
    assert not graphs._ABANDONED
    assert played.stream_now.name == "the caller's"
