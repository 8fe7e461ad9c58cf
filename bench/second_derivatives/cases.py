"""What a case is: a module and what goes into it, drawn anew from a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Call", "Case", "case", "classes", "integers", "normal", "positive", "probabilities", "signs"]

Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        layer: makes the module, in float64 or not.
        inputs: each draws one of its inputs. Floating-point ones count as variables, like the parameters.
    """

    layer: Callable[[], nn.Module]
    inputs: Sequence[Draw]

    def drawn(self, seed: int) -> tuple[nn.Module, list[Tensor]]:
        """Module and inputs, in float64."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.layer().double(), [draw() for draw in self.inputs]


class Call(nn.Module):
    """A function of its inputs as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def case(layer: Callable[..., Any], *inputs: Draw) -> Case:
    """``layer``: makes a module; or, if it takes anything, is itself the function to look at."""
    code = getattr(layer, "__code__", None)
    if code is not None and code.co_argcount == 0 and not code.co_flags & 4:  # no *args
        return Case(layer, inputs)
    return Case(lambda: Call(layer), inputs)


def normal(*shape: int) -> Draw:
    return lambda: torch.randn(*shape, dtype=torch.float64)


def positive(*shape: int) -> Draw:
    return lambda: 0.5 + torch.rand(*shape, dtype=torch.float64)


def probabilities(*shape: int) -> Draw:
    """Inside of (0, 1), summing to anything."""
    return lambda: 0.1 + 0.8 * torch.rand(*shape, dtype=torch.float64)


def signs(*shape: int) -> Draw:
    """No variables: -1 and 1, as integers."""
    return lambda: 2 * torch.randint(2, shape) - 1


def integers(high: int, *shape: int) -> Draw:
    return lambda: torch.randint(high, shape)


def classes(count: int, *shape: int) -> Draw:
    """Every class occurs, if there is room."""
    return lambda: torch.arange(shape[0] if len(shape) == 1 else int(torch.tensor(shape).prod())).remainder(count).reshape(shape)
