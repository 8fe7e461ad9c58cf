"""One thread: two that wait for each other on a busy machine take many times as long for work this small."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)


@pytest.fixture(autouse=True)
def no_worker_above(monkeypatch):
    """A bench that runs pytest itself must not take itself for a worker of the pytest above it, and measure nothing."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
