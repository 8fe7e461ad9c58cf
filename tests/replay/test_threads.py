"""Runs in several threads: one at a time, whatever happens, and no pinned setting stays."""

from __future__ import annotations

import _thread
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import reversible_hypergrad as rh

MODEL = nn.Linear(3, 1)
DATA = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
OTHER = "another thread is inside of a run .* Let the threads take turns, with a lock around train and backward, or use processes"


def total(trained):
    return sum(w.square().sum() for w in trained.values())


def square(model, batch, _):
    return model(batch).square().mean()


def train(loss=square, **settings):
    return rh.train(MODEL, loss, DATA, optimizer=rh.SGD(lr=0.1), **settings)


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.flash_sdp_enabled(),
        random.getstate()[1][:3],
        tuple(np.random.get_state()[1][:3]),  # noqa: NPY002
        tuple(torch.get_rng_state()[:64].tolist()),
    )


class Meanwhile:
    """A loss that waits once, so that another thread can try something while the run is inside."""

    def __init__(self):
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, model, batch, _):
        self.calls += 1
        if self.calls == 3:
            self.reached.set()
            assert self.go_on.wait(30)
        return square(model, batch, _)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda early: train(),
        lambda early: total(early).backward(),
        lambda early: rh.check_replayable(MODEL, square, DATA[0]),
    ],
    ids=["train", "backward", "check_replayable"],
)
def test_a_second_thread_is_refused_and_nothing_stays(attempt):
    early, before, loss = train(), settings(), Meanwhile()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, loss)
        assert loss.reached.wait(30)
        pinned = settings()
        with pytest.raises(RuntimeError, match=OTHER):
            attempt(early)
        assert settings()[:6] == pinned[:6]  # the first run's are still in force
        loss.go_on.set()
        trained = running.result()
    assert settings() == before
    total(trained).backward()
    total(early).backward()
    assert trained.report.restored
    assert early.report.restored
    assert settings() == before


def test_threads_that_take_turns():
    lock = threading.Lock()
    before = settings()

    def task(seed):
        with lock:
            trained = train(seed=seed)
            total(trained).backward()
            return trained.report.restored

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(task, range(8)))
    assert settings() == before


def test_a_run_inside_of_the_loss_of_another():
    """Its backward, too, as where the loss tunes something itself."""
    inner = []

    def tuned(model, batch, _):
        log_lr = torch.tensor(-2.0, requires_grad=True)
        trained = rh.train(MODEL, square, DATA[:3], optimizer=rh.SGD(lr=log_lr.exp()))
        (slope,) = torch.autograd.grad(total(trained), log_lr)
        inner.append(float(slope))
        return square(model, batch, _)

    before = settings()
    trained = train(tuned)
    total(trained).backward()
    assert trained.report.restored
    assert len(inner) >= 2 * len(DATA)  # the check of derivatives evaluates it, too
    assert settings() == before


@pytest.mark.parametrize("by_python", [False, True], ids=["autograd's", "Python's"])
def test_the_backward_of_a_nested_run_in_another_thread(by_python):
    """Autograd computes a GPU's backward in a thread of its own, of which Python does not know. Others are refused."""
    found = []

    def tuned(model, batch, _):
        if not found:
            trained = rh.train(MODEL, square, DATA[:3], optimizer=rh.SGD(lr=0.1))
            value, over = total(trained), threading.Event()

            def backward():
                try:
                    value.backward()
                    found.append(trained.report.restored)
                except RuntimeError as error:
                    found.append(str(error))
                over.set()

            threading.Thread(target=backward).start() if by_python else _thread.start_new_thread(backward, ())
            assert over.wait(30)
        return square(model, batch, _)

    before = settings()
    train(tuned)
    assert settings() == before
    if by_python:
        assert found[0].startswith("another thread is inside of a run")
    else:
        assert found == [True]


def test_a_run_that_fails_lets_others_in():
    def broken(model, batch, _):
        raise KeyError("lost")

    before = settings()
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError):
        pool.submit(train, broken).result()
    assert settings() == before
    assert train().report.steps == len(DATA)
