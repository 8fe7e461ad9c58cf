"""Nests of containers (dict, list, tuple, and what users register) as lists of leaves, by torch's private pytree."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree

__all__ = ["Structure", "flatten", "leaves", "map_tensors", "names", "paths", "register", "register_dict", "unflatten"]

Structure = _pytree.TreeSpec  # a nest without its leaves


def flatten(nest: Any) -> tuple[list[Any], Structure]:
    """The leaves in order, and what :func:`unflatten` needs to put others in their places."""
    return _pytree.tree_flatten(nest)


def unflatten(leaves: list[Any], structure: Structure) -> Any:
    return _pytree.tree_unflatten(leaves, structure)


def leaves(nest: Any) -> list[Any]:
    return _pytree.tree_leaves(nest)


def paths(nest: Any) -> list[str]:
    """How to get at each leaf, such as ``['x'][0]``, in the order of :func:`leaves`."""
    return [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(nest)[0]]


def names(nest: Any) -> list[str]:
    """How a user would call each leaf, such as ``x.0``, in the order of :func:`leaves`; empty for a nest that is a leaf."""
    return [".".join(map(_name, path)) for path, _ in _pytree.tree_flatten_with_path(nest)[0]]


def _name(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))


def map_tensors(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """A nest with ``function`` of every tensor; other leaves are the same objects."""
    return _pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, nest)


def register(
    container: type[Any], children: Callable[[Any], tuple[list[Any], Any]], make: Callable[[Any, Any], Any], name: str
) -> None:
    """Lets a class count as a container.

    Args:
        container: the class.
        children: what is in one, and what else it takes to make another one.
        make: one, from other children and that.
        name: stands for it where torch writes a structure down.
    """
    _pytree.register_pytree_node(container, children, make, serialized_type_name=name)


def register_dict(container: type[dict[str, Any]], name: str) -> None:
    """Lets a subclass of dict count as a container, which comes back as a plain dict.

    Args:
        container: the subclass.
        name: stands for it where torch writes a structure down.
    """
    _pytree.register_pytree_node(
        container,
        lambda items: (list(items.values()), list(items)),
        lambda values, keys: dict(zip(keys, values, strict=True)),
        serialized_type_name=name,
        flatten_with_keys_fn=lambda items: ([(_pytree.MappingKey(key), value) for key, value in items.items()], list(items)),
    )
