"""The stack of planes in page-locked memory, over a side stream that does its copies as late as it may."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_task import Task

import reversible_hypergrad as rh
from reversible_hypergrad.storage import host as host_planes
from reversible_hypergrad.storage.host import HostPlanes
from reversible_hypergrad.storage.memory import MemoryPlanes
from reversible_hypergrad.storage.places import open_store


class Copy:
    """Of the side stream: an event that is reached when its copy is made, after all copies before it."""

    def __init__(self, side, target, source):
        self.side, self.target, self.source, self.done = side, target, source, False

    def query(self):
        return self.done

    def synchronize(self):
        self.side.waits += 1
        self.side.run(self)


class LateSide:
    """SideStream's methods on CPU tensors. Nothing is copied before somebody waits for it."""

    def __init__(self):
        self.queue, self.fetched, self.waits, self.allocated = [], 0, 0, []

    def run(self, until):
        while not until.done:
            copy = self.queue.pop(0)
            copy.target.copy_(copy.source)
            copy.done = True

    def host_memory(self, nbytes):
        self.allocated.append(nbytes)
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def send(self, plane, place):
        self.queue.append(Copy(self, place, plane))
        return self.queue[-1]

    def fetch(self, place):
        self.fetched += 1
        self.queue.append(Copy(self, torch.full_like(place, 254), place))
        return self.queue[-1].target, self.queue[-1]

    def receive(self, plane, arrival):
        self.run(arrival)
        return plane


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(host_planes, "_IN_FLIGHT", 4096)
    monkeypatch.setattr(host_planes, "_SMALLEST", 1024)
    monkeypatch.setattr(host_planes, "_LARGEST", 8192)


def planes_of(sizes, first=0):
    return [torch.arange(first + i, first + i + size).to(torch.uint8) for i, size in enumerate(sizes)]


CALLS = st.lists(
    st.sampled_from(["push", "push", "pop", "top", "pop"]).flatmap(lambda c: st.tuples(st.just(c), st.integers(0, 3000)))
)


@given(CALLS)
def test_any_order_of_calls(calls):
    store, expected = HostPlanes(torch.device("cpu"), LateSide()), []
    for i, (call, size) in enumerate(calls):
        if call == "push":
            expected += planes_of([size], i)
            store.push(expected[-1].clone())
        elif expected and call == "pop":
            assert torch.equal(store.pop(), expected.pop())
        elif expected:
            assert torch.equal(store.top(), expected[-1])
        assert store.nbytes == sum(p.nbytes for p in expected)
        assert store._leaving_bytes <= 4096
        assert store._ahead_bytes <= max(4096, expected[-1].nbytes if expected else 0)
    while expected:
        assert torch.equal(store.pop(), expected.pop())
    assert store.nbytes == 0
    assert not store._chunks
    store.close()


def test_nobody_waits_unless_too_much_is_on_its_way():
    side = LateSide()
    store = HostPlanes(torch.device("cpu"), side)
    for plane in planes_of([1000] * 4):
        store.push(plane)
    assert side.waits == 0
    store.push(planes_of([1000])[0])
    assert side.waits == 1


def test_the_next_planes_are_asked_for_ahead():
    side = LateSide()
    store = HostPlanes(torch.device("cpu"), side)
    for plane in planes_of([1000] * 9):
        store.push(plane)
    store.top()
    assert side.fetched == 4
    for popped in range(1, 10):
        store.pop()
        assert side.fetched == min(4 + popped, 9)


def test_memory_is_page_locked_in_few_and_growing_chunks_and_used_again():
    side = LateSide()
    store = HostPlanes(torch.device("cpu"), side)
    for turn in range(3):
        for plane in planes_of([256] * 100):
            store.push(plane)
        for _ in range(100):
            store.pop()
        assert len(side.allocated) <= 8 * (turn + 1)
    assert side.allocated[:4] == [1024, 1024, 2048, 4096]
    store.push(planes_of([20_000])[0])
    assert side.allocated[-1] == 32_768


def test_close_lets_everything_go():
    store = HostPlanes(torch.device("cpu"), LateSide())
    for plane in planes_of([1000] * 9):
        store.push(plane)
    store.pop()
    store.close()
    assert store.nbytes == 0
    assert not any([store._chunks, store._places, store._leaving, store._ahead, store._spare])


def test_host_is_plain_memory_where_the_planes_are_on_the_cpu():
    assert isinstance(open_store("host", torch.device("cpu")), MemoryPlanes)


@pytest.fixture
def over_a_late_side(monkeypatch):
    """Every store in memory is a HostPlanes."""
    from reversible_hypergrad.adjoints import scheduled
    from reversible_hypergrad.reversible import group

    for module in (group, scheduled):
        monkeypatch.setattr(module, "open_store", lambda place, device: HostPlanes(device, LateSide()))


ADJOINTS = {
    "reversible": lambda: rh.Reversible(state_bits=32),
    "segments": lambda: rh.Reversible(segments=4),
    "snapshots": rh.Snapshots,
    "checkpoint": rh.Checkpoint,
    "tree": lambda: rh.RecursiveCheckpoint(slots=3),
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_runs_have_the_same_bits(adjoint, request):
    results = []
    for place in ("plain", "late"):
        if place == "late":
            request.getfixturevalue("over_a_late_side")
        task = Task()
        task.backward(task.train(adjoint=ADJOINTS[adjoint]()))
        results.append([task.log_l2.grad, *(p.grad for p in task.model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_large_plane_is_not_waited_for():
    side = LateSide()
    store = HostPlanes(torch.device("cpu"), side)
    planes = planes_of([5000] * 4)
    for pushed, plane in enumerate(planes):
        store.push(plane)
        assert side.waits == pushed
    for plane in reversed(planes):
        assert torch.equal(store.pop(), plane)
