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
    assert pytree.names(nest) == ["x.0", "x.1", "y.0", "y.1"]
    assert pytree.names(torch.ones(2)) == [""]
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
    model = torch.nn.Linear(3, 1, bias=False)
    trained = rh.train(model, lambda model, x, _: model(x).sum(), [torch.ones(2, 3)], optimizer=rh.SGD(lr=0.1))
    assert pytree.paths([trained]) == ["[0]['weight']"]
    assert torch.equal(pytree.map_tensors(lambda t: 2 * t, trained)["weight"], 2 * trained["weight"])


def test_a_start_is_a_nest() -> None:
    start = rh.Start({"w": torch.ones(3)}, {"w": {"v": torch.zeros(3)}}, {"b": torch.ones(1)}, step=7)
    doubled = pytree.map_tensors(lambda t: 2 * t, start)
    assert isinstance(doubled, rh.Start)
    assert doubled.step == 7
    assert [t.tolist() for t in pytree.leaves(doubled)] == [[2, 2, 2], [0, 0, 0], [2]]
