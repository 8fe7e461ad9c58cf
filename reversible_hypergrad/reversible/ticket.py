"""Steps that are queued before anybody knows whether the ones before them were refused."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ticket", "none_refused"]


@dataclass(frozen=True)
class Ticket:
    """A step's place among those that share ``first_refused``, on the device of their state.

    Kernels write a refused step's number there. From then on no later step takes place, and :meth:`State.retract` takes back
    that very step and no other: so both can be queued with each step, and the host looks when it likes.
    """

    first_refused: Tensor  # int64, one element
    number: int  # ascending from step to step


def none_refused(device: torch.device) -> Tensor:
    return torch.full((1,), torch.iinfo(torch.int64).max, device=device)
