"""What autograd's graph tells before anything is differentiated through it."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Graph", "graph_of", "is_first_order_only", "is_held", "lacks_second_derivative", "nodes_of"]


class Graph(NamedTuple):
    """What a tensor was computed of.

    Attributes:
        others: nodes of leaves, other than those that are known.
        kinds: the classes of its nodes.
        begun: the least of their numbers, which torch counts up in each thread.
    """

    others: list[Any]
    kinds: set[type]
    begun: int


def graph_of(result: Tensor, known: Sequence[Tensor]) -> Graph:
    """Walks through the graph of ``result``, down to the tensors ``known``, which need not be leaves. 0.4 us per node."""
    leaves = {id(t) for t in known}
    seen = {t.grad_fn for t in known if t.grad_fn is not None}
    others, kinds, waiting = [], set(), [result.grad_fn]
    begun = result.grad_fn._sequence_nr()  # type: ignore[union-attr]
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind is _LEAF:
            if id(node.variable) not in leaves:  # type: ignore[union-attr]
                others.append(node)
            continue
        kinds.add(kind)
        begun = min(begun, node._sequence_nr())  # type: ignore[union-attr]
        for parent, _ in node.next_functions:  # type: ignore[union-attr]
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return Graph(others, kinds, begun)


def is_held(node: Any) -> bool:
    """Whether the variable of a leaf's node is held by anything but its graph: only then can somebody ask for its gradient."""
    lone = _leaf()
    return sys.getrefcount(node.variable) > sys.getrefcount(lone.variable)


def is_first_order_only(results: Sequence[Tensor | None]) -> bool:
    """Whether a once_differentiable function is in the graphs, which torch may take for constant without an error."""
    return any(_is_marked(node) for node in nodes_of(results))


def lacks_second_derivative(gradients: Sequence[Tensor | None]) -> bool:
    """Torch would say so itself, but only on the way back, after all of training."""
    return any(node.name().endswith("::NotImplemented") for node in nodes_of(gradients))


def _leaf() -> Any:
    """The node of a leaf that nothing else holds."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).view(1).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


_LEAF: type = type(_leaf())


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
