"""Where planes of bits, or states, wait until they are read once, in reverse order."""

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["PlaneStore"]


class PlaneStore(ABC):
    """Last in, first out."""

    nbytes: int = 0  # of all planes now held

    @abstractmethod
    def push(self, plane: Tensor) -> None: ...

    @abstractmethod
    def pop(self) -> Tensor:
        """Valid until the next push."""

    @abstractmethod
    def top(self) -> Tensor:
        """The next plane to pop, which stays. Not to be written to."""

    def flush(self) -> None:  # noqa: B027
        """Returns when every plane is where it belongs. Raises what went wrong on the way."""

    @abstractmethod
    def close(self) -> None:
        """Lets everything go."""
