"""One thread: two that wait for each other on a busy machine take many times as long for work this small."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)
