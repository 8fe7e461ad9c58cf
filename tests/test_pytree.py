"""Nests as lists of leaves."""

from __future__ import annotations

import torch

import reversible_hypergrad as rh
from reversible_hypergrad import pytree


def test_leaves_their_paths_and_the_nest_again() -> None:
    nest = {"x": [torch.ones(2), None], "y": (3, "four")}
    leaves, structure = pytree.flatten(nest)
    assert pytree.paths(nest) == ["['x'][0]", "['x'][1]", "['y'][0]", "['y'][1]"]
    assert [a is b for a, b in zip(pytree.leaves(nest), leaves, strict=True)] == [True] * 4
    again = pytree.unflatten(leaves, structure)
    assert again["x"][0] is nest["x"][0]
    assert again["y"] == (3, "four")


def test_tensors_alone_are_mapped() -> None:
    other = object()
    mapped = pytree.map_tensors(lambda t: t + 1, [torch.zeros(()), (other, 5)])
    assert mapped[0].item() == 1
    assert mapped[1][0] is other
    assert mapped[1][1] == 5


def test_trained_weights_are_a_nest() -> None:
    trained = rh.TrainedWeights({"w": torch.ones(3)}, {}, report=None)  # type: ignore[arg-type]
    assert pytree.paths([trained]) == ["[0]['w']"]
    assert torch.equal(pytree.map_tensors(lambda t: 2 * t, trained)["w"], torch.full((3,), 2.0))
