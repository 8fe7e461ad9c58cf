"""Progress bars, or nothing."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Bar", "bars"]


class Bar:
    """Does nothing. The interface of what a run advances once per step."""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    @property
    def wants_text(self) -> bool:
        return False

    def advance(self, text: str = "") -> None:
        pass


class _TqdmBar(Bar):
    def __init__(self, what: str, steps: int | None) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(total=steps, desc=what, unit="step", leave=False)
        self._count = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    @property
    def wants_text(self) -> bool:
        self._count += 1
        return self._count % 16 == 0

    def advance(self, text: str = "") -> None:
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()


def bars(shown: bool) -> Callable[[str, int | None], Bar]:
    """A maker of bars from a description and a number of steps, None where it is not known."""
    return _TqdmBar if shown else lambda what, steps: Bar()
