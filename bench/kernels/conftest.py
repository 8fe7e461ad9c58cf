"""Options of the kernels' benchmarks: pytest bench/kernels --benchmark-enable --weights 10000 1000000 --rounds 30."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Hook = Callable[[], object]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--weights", type=int, nargs="+", default=[10_000, 1_000_000], help="sizes, in weights or lanes")
    parser.addoption("--rounds", type=int, default=50)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "weights" in metafunc.fixturenames:
        metafunc.parametrize("weights", metafunc.config.getoption("--weights"))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Threads would make the medians depend on what else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Times ``call`` in rounds of one call each; ``before`` and ``after`` each round are not timed."""

    def run(call: Hook, before: Hook | None = None, after: Hook | None = None) -> None:
        rounds = request.config.getoption("--rounds")
        hooks = {"setup": _quiet(before), "teardown": _quiet(after)}
        benchmark.pedantic(call, **hooks, rounds=rounds, iterations=1, warmup_rounds=2)

    return run


def _quiet(hook: Hook | None) -> Callable[[], None] | None:
    """Without its result, which pytest-benchmark would take for the call's arguments."""

    def quiet() -> None:
        assert hook is not None
        hook()

    return quiet if hook else None
