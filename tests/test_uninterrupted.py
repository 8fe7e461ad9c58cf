"""Signals that wait until a block is over: which, for how long, and who gets them then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import reversible_hypergrad as rh
from reversible_hypergrad.interrupts import Uninterrupted, uninterrupted


@pytest.fixture
def handle() -> Iterator[Callable[[int, Any], None]]:
    """signal.signal; the handlers of before are back afterwards."""
    before: list[tuple[int, Any]] = []
    yield lambda number, handler: before.append((number, signal.signal(number, handler)))
    for number, handler in reversed(before):
        signal.signal(number, handler)


def ends(number: int, frame: Any) -> None:
    raise SystemExit(number)


def test_the_exception_comes_behind_the_block() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done = True
        pytest.fail("nothing was raised")
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_several_signals(handle: Any) -> None:
    """Each is handled, once, in the order in which they came; both exceptions are told of."""
    handle(signal.SIGTERM, ends)
    with pytest.raises(SystemExit) as caught, Uninterrupted():  # noqa: PT012
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is ends
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_told_of() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Uninterrupted():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError("first")
    assert isinstance(caught.value.__context__, ValueError)


def test_handlers_that_raise_nothing_are_called_once(handle: Any) -> None:
    seen: list[int] = []
    handle(signal.SIGUSR1, lambda number, frame: seen.append(number))
    with Uninterrupted():
        signal.raise_signal(signal.SIGUSR1)
        assert not seen
    assert seen == [signal.SIGUSR1]


def test_signals_without_handlers_are_left_alone(handle: Any) -> None:
    handle(signal.SIGINT, signal.SIG_IGN)
    with Uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)


def test_a_handler_that_is_set_inside_stays(handle: Any) -> None:
    handle(signal.SIGTERM, ends)
    other = lambda number, frame: None  # noqa: E731
    with Uninterrupted():
        signal.signal(signal.SIGTERM, other)
    assert signal.getsignal(signal.SIGTERM) is other


def test_blocks_in_blocks() -> None:
    done = []

    @uninterrupted
    def inner() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("inner")

    with pytest.raises(KeyboardInterrupt), Uninterrupted():  # noqa: PT012
        inner()
        done.append("outer")
    assert done == ["inner", "outer"]


def test_a_block_in_which_they_come_through() -> None:
    held = []
    with pytest.raises(KeyboardInterrupt), Uninterrupted() as signals:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        try:
            with signals.but_for():
                pytest.fail("the waiting one was not raised")
        finally:
            held.append(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), Uninterrupted() as signals:  # noqa: PT012
        try:
            with signals.but_for():
                signal.raise_signal(signal.SIGINT)
        finally:
            held.append(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
    assert held == [True, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_hold_nothing() -> None:
    found = []

    def work() -> None:
        with Uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_in_a_closure_they_come_at_once(handle: Any) -> None:
    """A closure that hangs can be left; then nothing has changed."""
    handle(signal.SIGTERM, ends)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = rh.ReversibleSGD([weight], lr=0.1)

    def closure() -> None:
        optimizer.zero_grad()
        weight.square().sum().backward()
        if stops:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the closure went on")

    stops = False
    optimizer.step(closure)
    moved = weight.detach().clone()
    stops = True
    for move in (optimizer.step, optimizer.step_back):
        with pytest.raises(SystemExit):
            move(closure)
        assert torch.equal(weight, moved)
    stops = False
    optimizer.step_back(closure)
    assert torch.equal(weight, torch.ones(3))
