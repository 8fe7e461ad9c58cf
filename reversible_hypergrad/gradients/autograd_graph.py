"""What autograd's graph tells before anything is differentiated through it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_first_order_only", "lacks_second_derivative", "leaves_of", "nodes_of"]


def is_first_order_only(results: Sequence[Tensor | None]) -> bool:
    """Whether a once_differentiable function is in the graphs, which torch may take for constant without an error."""
    return any(_is_marked(node) for node in nodes_of(results))


def lacks_second_derivative(gradients: Sequence[Tensor | None]) -> bool:
    """Torch would say so itself, but only on the way back, after all of training."""
    return any(node.name().endswith("::NotImplemented") for node in nodes_of(gradients))


def leaves_of(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward would give gradients."""
    variables = (getattr(node, "variable", None) for node in nodes_of([loss]))
    return [variable for variable in variables if isinstance(variable, Tensor)]


def _is_marked(node: Any) -> bool:
    # In a gradient's graph, torch left an Error where the backward ran. In the loss's, the backward itself is looked at: the
    # decorator's wrapper is code of torch.autograd.function.
    backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
    code = getattr(backward, "__code__", None)
    wrapped = code is not None and code.co_filename == torch.autograd.function.__file__ and hasattr(backward, "__wrapped__")
    return wrapped or node.name().endswith("::Error")


def nodes_of(tensors: Sequence[Tensor | None]) -> Iterator[Any]:
    """Every node of the graphs of ``tensors``."""
    seen, waiting = set(), [t.grad_fn for t in tensors if t is not None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
            yield node
