"""The task and every way to its hypergradient: all exact ones agree with the unrolled graph, at a tiny size."""

import pytest
import torch

from bench import handwritten, peers
from bench.measure import LeftOut, measured, reference, relative_error
from bench.methods import METHODS
from bench.tasks import MODELS, Task, build

EXACT = [m.name for m in METHODS.values() if m.exact and m.most is None and m.name != "training"]


def skip_if_missing(method):
    reason = METHODS[method].missing()
    if reason:
        pytest.skip(f"{method} is {reason}")


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] if METHODS[m].compiled else []) for m in EXACT])
@pytest.mark.parametrize("steps", [1, 7])
def test_exact_methods_agree_with_the_unrolled_graph(method, steps):
    skip_if_missing(method)
    unrolled = handwritten.unroll(Task("small", torch.float64), steps)
    # The state of float64 weights has 64 bits, which keep 14 digits.
    assert relative_error(METHODS[method](Task("small", torch.float64), steps), unrolled) < 1e-9


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.family == "peer"])
def test_peers_differentiate_the_same_run_of_a_convolution(method):
    skip_if_missing(method)
    unrolled = handwritten.unroll(Task("cnn", torch.float64), 4)
    assert relative_error(METHODS[method](Task("cnn", torch.float64), 4), unrolled) < 1e-12


@pytest.mark.parametrize("steps", [2, 3, 16, 21])
def test_recursive_checkpoints_at_every_shape_of_tree(steps):
    unrolled = handwritten.unroll(Task("small", torch.float64), steps)
    assert relative_error(handwritten.recursive(Task("small", torch.float64), steps), unrolled) < 1e-12


def test_forward_mode_where_hyperparameters_are_few():
    unrolled = handwritten.unroll(Task("small", torch.float64, "tensor"), 5)
    forward = METHODS["rh.ForwardMode"](Task("small", torch.float64, "tensor"), 5)
    assert len(forward) == 4
    assert relative_error(forward, unrolled) < 1e-10


@pytest.mark.parametrize("method", ["rh.Truncated", "rh.DrMAD", "rh.Neumann"])
def test_approximate_methods_return_a_gradient_and_are_labelled(method):
    assert not METHODS[method].exact
    hypergradient = METHODS[method](Task("small"), 5)
    assert all(torch.isfinite(h).all() for h in hypergradient)
    assert any(h.any() for h in hypergradient)


def test_a_missing_peer_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(peers.DISTRIBUTIONS, "higher", "no-such-distribution")
    assert METHODS["higher"].missing() == "not installed: pip install higher"
    assert "higher" not in peers.versions()


@pytest.mark.parametrize("name", MODELS)
def test_models_start_the_same_every_time(name):
    first, second = build(name), build(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first(torch.zeros(3, 64)).shape == (3, 10)


def test_a_model_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "users_models.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))\n"
        "def wide(): return nn.Linear(64, 11)\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = measured("rh.Reversible", 2, model="users_models:net", exact=reference("users_models:net", "weight", 2, tmp_path))
    assert result["error"] < 1e-5
    with pytest.raises(ValueError, match=r"model: expected users_models:wide to map .* got \(2, 11\)"):
        build("users_models:wide")
    with pytest.raises(ValueError, match=r"users_models:number to return an nn\.Module, got int"):
        build("users_models:number")
    with pytest.raises(ValueError, match=r"model: expected .*users_models:no.* which cannot be imported"):
        build("users_models:no")
    with pytest.raises(ValueError, match="model: expected 'mlp', 'medium', 'small', 'cnn' or MODULE:FUNCTION, got 'big'"):
        build("big")


def test_penalties_are_per_weight_or_tensor():
    with pytest.raises(ValueError, match="penalties: expected one of"):
        Task("small", penalties="layer")


def test_references_are_kept_and_told_apart(tmp_path):
    path = reference("small", "weight", 2, tmp_path)
    assert path == reference("small", "weight", 2, tmp_path)
    others = {reference("small", "weight", 3, tmp_path), reference("small", "tensor", 2, tmp_path)}
    assert len({path, *others}) == 3
    assert sorted(tmp_path.iterdir()) == sorted({path, *others})
    unrolled = handwritten.unroll(Task("small", torch.float64), 2)
    assert relative_error(torch.load(path, weights_only=True), unrolled) < 1e-12


def test_measured_fills_every_field_and_keeps_to_its_limits():
    result = measured("snapshots", 3, model="small")
    assert set(result) == {"megabytes", "megabytes_beyond_warm_up", "cpu_seconds", "wall_seconds", "warm_up_seconds"}
    assert result["cpu_seconds"] > 0
    with pytest.raises(LeftOut, match=r"ran past 0.2 s"):
        measured("snapshots", 100_000, model="small", seconds=0.2)
    with pytest.raises(LeftOut, match=r"passed 0.05 GB"):
        measured("snapshots", 100_000, model="small", gigabytes=0.05)
    with pytest.raises(LeftOut, match=r"failed: \w+Error: .*1,?210"):
        measured("rh.ForwardMode", 2, model="small")
