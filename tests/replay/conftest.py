"""One thread: waiting threads cost more than the work at this size."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)
