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

def contract(values: NDArray[np.integer[Any]], shift: int, centre: int) -> NDArray[np.uint8]: ...
def expand(values: NDArray[np.integer[Any]], planes: NDArray[np.uint8], shift: int, centre: int) -> None: ...
def block_count(size: int) -> int: ...
def state_size(size: int) -> int: ...
def plane_bytes(size: int) -> int: ...
