"""The main job at a tiny size, from arguments to files."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from cli_helpers import TINY

from reversible_hypergrad.cli import search
from reversible_hypergrad.cli.data import load_digits
from reversible_hypergrad.cli.problem import Problem

FIGURES = ("schedules", "penalties", "learning_curves", "meta_learning")


@pytest.fixture(autouse=True)
def short_grid(monkeypatch):
    monkeypatch.setattr(search, "LEARNING_RATES", (0.1, 0.2))
    monkeypatch.setattr(search, "PENALTIES", (1e-4,))


def numbers(nest):
    if isinstance(nest, dict):
        return [x for value in nest.values() for x in numbers(value)]
    if isinstance(nest, list | tuple):
        return [x for value in nest for x in numbers(value)]
    return [nest] if isinstance(nest, float) else []


def test_json_and_files(command, tmp_path):
    status, out, err = command(*TINY, "--output", tmp_path, "--json")
    assert (status, err) == (0, "")
    results = json.loads(out)
    weights = 64 * 4 + 4 + 4 * 10 + 10
    assert results["weights"] == weights
    assert results["hyperparameters"] == {
        "total": weights + 2 * 6 + 6 + 2,
        "penalties": weights,
        "learning rates": 12,
        "momenta": 6,
        "initial scales": 2,
    }
    assert results["restored_bit_for_bit"] is True
    assert results["restored_runs"] == 2
    assert results["states_checked"] == 2 * 6
    assert len(results["meta_learning"]) == 2
    assert results["memory"]["trajectory_bytes"] == 6 * weights * 4
    # Six decays by a momentum of 0.9 and more come to less than one halving, so there is no bit to keep yet.
    assert results["memory"]["kept_bytes"] > results["memory"]["information_bytes"] == 0
    assert results["limit_bits_per_weight_step"] > results["bits_per_weight_step"] == 0
    assert results["hypergradient"]["times_training_run"] > 0
    assert results["baseline"]["lr"] in (0.1, 0.2)
    for key in ("before", "after", "before_other_starts", "after_other_starts"):
        assert list(results[key]) == ["training", "validation", "test"]
        assert list(results[key]["test"]) == ["loss", "loss_sd", "error", "error_sd"]
    assert all(math.isfinite(x) for x in numbers(results))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "restored bit for bit" in (tmp_path / "table.txt").read_text()
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "6 steps of 8 examples" in (tmp_path / f"{name}.txt").read_text().replace("\n", " ")
    learned = torch.load(tmp_path / "hyperparameters.pt")
    assert learned["log_l2"]["layer1.weight"].shape == (4, 64)
    assert ((learned["momentum"] > 0) & (learned["momentum"] < 1)).all()


def test_table(command, tmp_path, mnist):
    arguments = ["--data", mnist, "--no-figures", "--state-bits", 32, "--output", tmp_path / "new" / "out", "--hidden"]
    status, out, _ = command(*TINY, *arguments)
    assert status == 0
    assert "MNIST: 20 examples to train, 20 to validate, 20 to test. A linear classifier 20-10" in out
    assert "restored bit for bit      yes (2 of 2 runs" in out
    assert max(map(len, out.splitlines())) <= 88
    assert not list((tmp_path / "new" / "out").glob("*.png"))


def test_same_seed_same_results(command, tmp_path):
    def run(seed):
        arguments = ("--no-figures", "--output", tmp_path, "--json", "--seed", seed)
        results = json.loads(command(*TINY, *arguments)[1])
        return results["meta_learning"], results["after"]

    assert run(1) == run(1) != run(2)


def test_two_hidden_layers_with_as_many_units_as_steps(command, tmp_path):
    # A schedule and a bias of the same length must not be mistaken for one another.
    arguments = ["--steps", 10, "--hidden", 10, 10, "--meta-steps", 1, "--output", tmp_path]
    status, out, _ = command("tune", *arguments)
    assert status == 0
    assert "64-10-10-10" in out


def test_learning_improves_validation_and_test():
    problem = Problem(load_digits(0), [16], steps=30, batch_size=50, seed=0, state_bits=64)
    recipe = problem.constant_recipe(lr=0.1, l2=1e-3)
    before = search.score(problem, recipe, "validation test", search.JUDGED_ORDERS[:2])
    learning = search.learn(problem, recipe, 12, 0.1, lambda loss: None)
    after = search.score(problem, recipe, "validation test", search.JUDGED_ORDERS[:2])
    assert learning.restored == 12
    for a, b in zip(after, before, strict=True):
        assert a.loss < 0.9 * b.loss


def test_chaotic_hypergradients_are_not_followed(monkeypatch):
    monkeypatch.setattr(search, "_CHAOTIC", 0.0)
    problem = Problem(load_digits(0), [4], steps=4, batch_size=50, seed=0, state_bits=64)
    recipe = problem.constant_recipe(lr=0.1, l2=1e-3)
    learning = search.learn(problem, recipe, 2, 0.1, lambda loss: None)
    assert learning.chaotic == [0, 1]
    assert recipe.log_lr[0].exp().flatten().tolist() == pytest.approx([0.081] * 4)
    assert torch.equal(recipe.momentum(), problem.constant_recipe(0.1, 1e-3).momentum())


def test_hypergradients_of_the_recipe_against_finite_differences():
    problem = Problem(load_digits(0), [5], steps=5, batch_size=50, seed=0, state_bits=64)
    recipe = problem.constant_recipe(lr=0.5, l2=1e-2)
    tensors = recipe.tensors()
    directions = [torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(tensors)]

    def loss(h):
        with torch.no_grad():
            for t, d in zip(tensors, directions, strict=True):
                t += h * d
            value = problem.loss(problem.train(recipe, order=0), problem.data.validation).item()
            for t, d in zip(tensors, directions, strict=True):
                t -= h * d
        return value

    slope = (loss(0.02) - loss(-0.02)) / 0.04
    for t in tensors:
        t.requires_grad_()
    problem.loss(problem.train(recipe, order=0), problem.data.validation).backward()
    exact = sum((t.grad * d).sum().item() for t, d in zip(tensors, directions, strict=True))
    assert exact == pytest.approx(slope, rel=0.01)


BAD = {
    "no command": ([], "COMMAND"),
    "another command": (["tunes"], "invalid choice: 'tunes'"),
    "unknown option": (["tune", "--stepps", "3"], "--stepps"),
    "no number": (["tune", "--steps", "many"], "--steps: expected a whole number of at least 2, got 'many'"),
    "one step": (["tune", "--steps", "1"], "--steps"),
    "no meta-steps": (["tune", "--meta-steps", "0"], "--meta-steps"),
    "meta-lr": (["tune", "--meta-lr", "nan"], "--meta-lr: expected a number above 0, got 'nan'"),
    "hidden": (["tune", "--hidden", "50", "0"], "--hidden"),
    "batch size": (["tune", "--batch-size", "601"], "--batch-size: expected at most 600, the training examples, got 601"),
    "seed": (["tune", "--seed", "-1"], "--seed"),
    "device": (["tune", "--device", "cuda"], "--device: expected cpu, the only one so far, got 'cuda'"),
    "state bits": (["tune", "--state-bits", "16"], "--state-bits"),
    "output": (["tune", "--output", __file__], "--output: cannot make the directory"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_give_one_line(command, case, tmp_path):
    arguments, expected = BAD[case]
    if "--output" not in arguments and "tune" in arguments:
        arguments = [*arguments, "--output", tmp_path]
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err


def test_interrupted(command, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "learn", interrupt)
    threads = torch.get_num_threads()
    status, out, err = command(*TINY, "--output", tmp_path)
    assert (status, out, err) == (130, "", "reversible_hypergrad: interrupted\n")
    assert torch.get_num_threads() == threads


def test_training_that_leaves_the_range(command, monkeypatch, tmp_path):
    monkeypatch.setattr(search, "LEARNING_RATES", (1e30,))
    status, _, err = command(*TINY, "--output", tmp_path)
    assert (status, err.count("\n")) == (1, 1)
    assert "diverges at every learning rate" in err


def test_as_a_module():
    result = subprocess.run([sys.executable, "-m", "reversible_hypergrad", "tune", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "--meta-steps" in result.stdout
