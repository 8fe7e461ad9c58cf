from typing import Any

import numpy as np
from numpy.typing import NDArray

BAD_INCREMENT: int
STATE_OVERFLOW: int
BAD_CHANGE: int
WEIGHT_OVERFLOW: int
FOREIGN_GRADIENT: int
BLOCK_SIZE: int
FORMATS: tuple[dict[str, int], ...]
SQUARES_FORMAT: dict[str, int]

def contract(values: NDArray[np.integer[Any]], shift: int, centre: int) -> NDArray[np.uint8]: ...
def expand(values: NDArray[np.integer[Any]], planes: NDArray[np.uint8], shift: int, centre: int) -> None: ...

class ScaleTables:
    def __init__(self, plane_bytes: list[int], most_shift: list[int]) -> None: ...
    def decay(
        self,
        a: NDArray[np.float64],
        count: NDArray[np.int64],
        exponent: NDArray[np.int64],
        factors: NDArray[np.float64],
        of_rule: NDArray[np.float64],
        active: NDArray[np.bool_] | None,
        rescale: NDArray[np.int64] | None,
        /,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], int]: ...
    def go_back(
        self,
        a: NDArray[np.float64],
        exponent: NDArray[np.int64],
        a_after: NDArray[np.float64],
        count_after: NDArray[np.int64],
        exponent_after: NDArray[np.int64],
        factors: NDArray[np.float64],
        of_rule: NDArray[np.float64],
        rescale: NDArray[np.int64] | None,
        /,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], int]: ...

def decay_scale(a: float, count: int, factor: float, rescale: int, most_shift: int) -> tuple[float, int, int, int]: ...
def halvings_of(product: float) -> int: ...
def block_count(size: int) -> int: ...
def state_size(size: int) -> int: ...
def plane_bytes(size: int) -> int: ...
