"""One thread: these models are too small for two, and waiting threads cost more than the work."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)
