"""Runs in forked processes: right, or refused before torch would wait for threads that a fork does not have."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch

import reversible_hypergrad as rh

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # that is what is tested
]
DATA = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))


def square(model: Any, batch: Any, _: Any) -> torch.Tensor:
    return model(batch).square().mean()


def train(data: Any = DATA) -> rh.training.TrainedWeights:
    torch.manual_seed(0)
    lr = torch.tensor(0.1, requires_grad=True)
    return rh.train(torch.nn.Linear(3, 1), square, data, optimizer=rh.SGD(lr), steps=6)


def total(trained: Any) -> torch.Tensor:
    return sum(w.square().sum() for w in trained.values())


def in_a_fork(action: Any) -> str:
    """What it returns there, or its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it was silent"
        try:
            said = str(action())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    os.waitpid(child, 0)
    return found


def whole_run(data: Any = DATA) -> bool:
    trained = train(data)
    total(trained).backward()
    return trained.report.restored


def test_the_backward_of_the_parents_run(set_num_threads: Any) -> None:
    """Whatever the number of threads: the run's own have not come along either."""
    set_num_threads(1)
    value = total(train())
    found = in_a_fork(value.backward)
    assert found.startswith("RuntimeError: backward was called in a forked process")
    assert "spawn" in found
    value.backward()


def test_a_run_with_several_threads(set_num_threads: Any) -> None:
    set_num_threads(2)
    found = in_a_fork(whole_run)
    assert found.startswith("RuntimeError: a run was begun in a forked process, where torch counts on 2 threads")
    assert "torch.set_num_threads(1)" in found
    assert in_a_fork(lambda: (torch.set_num_threads(1), whole_run())[1]) == "True"
    check = in_a_fork(lambda: rh.check_replayable(torch.nn.Linear(3, 1), square, DATA[0]))
    assert "a run was begun in a forked process" in check


def test_a_fork_while_another_thread_is_inside(set_num_threads: Any) -> None:
    """That thread is not in the fork, so it is nobody's turn there."""
    set_num_threads(1)
    reached, go_on = threading.Event(), threading.Event()

    def loss(model: Any, batch: Any, _: Any) -> torch.Tensor:
        if torch.equal(batch, DATA[3]):  # not in the checks before the first step
            reached.set()
            assert go_on.wait(30)
        return square(model, batch, _)

    def other() -> None:
        rh.train(torch.nn.Linear(3, 1), loss, DATA, optimizer=rh.SGD(0.1))

    thread = threading.Thread(target=other)
    thread.start()
    assert reached.wait(30)
    found = in_a_fork(whole_run)
    go_on.set()
    thread.join()
    assert found == "True"


def test_a_loader_that_prefetches(set_num_threads: Any) -> None:
    """Its thread is started again."""
    set_num_threads(1)
    loader = rh.ReplayableLoader(DATA[:, 0], batch_size=2, prefetch=2)
    expected = loader(0)
    assert in_a_fork(lambda: bool((loader(0) == expected).all() and whole_run(loader))) == "True"
