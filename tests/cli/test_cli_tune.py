"""The main job at a tiny size, from arguments to files."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from cli_helpers import TINY

from reversible_hypergrad.cli import search
from reversible_hypergrad.cli.data import load_digits
from reversible_hypergrad.cli.optimizers import OPTIMIZERS
from reversible_hypergrad.cli.problem import Problem

by_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

FIGURES = ("schedules", "penalties", "learning_curves", "meta_learning")


@pytest.fixture(autouse=True)
def short_grid(monkeypatch):
    """Two learning rates, and one constant of every other setting."""
    for name, optimizer in OPTIMIZERS.items():
        settings = tuple(replace(s, tried=s.tried[: 2 if s.name == "lr" else 1]) for s in optimizer.settings)
        monkeypatch.setitem(OPTIMIZERS, name, replace(optimizer, settings=settings))


def digits_problem(name, hidden, steps, batch_size=50):
    return Problem(load_digits(0), hidden, steps, batch_size, seed=0, state_bits=64, optimizer=OPTIMIZERS[name])


def numbers(nest):
    if isinstance(nest, dict):
        return [x for value in nest.values() for x in numbers(value)]
    if isinstance(nest, list | tuple):
        return [x for value in nest for x in numbers(value)]
    return [nest] if isinstance(nest, float) else []


# Of six steps and two layers.
COUNTS = {
    "sgd": {"learning rates": 12, "momenta": 6},
    "adamw": {"learning rates": 12, "beta1 values": 6, "beta2 values": 6, "weight decays": 12},
}
STARTS = {
    "sgd": {"lr": (0.1, 0.2), "momentum": (0.9,), "l2": (1e-4,)},
    "adamw": {"lr": (0.003, 0.01), "beta1": (0.9,), "beta2": (0.99,), "weight_decay": (0.01,), "l2": (1e-4,)},
}


@by_optimizer
def test_json_and_files(name, command, tmp_path):
    status, out, err = command(*TINY, "--optimizer", name, "--output", tmp_path, "--json")
    assert (status, err) == (0, "")
    results = json.loads(out)
    weights = 64 * 4 + 4 + 4 * 10 + 10
    assert results["weights"] == weights
    counts = {**COUNTS[name], "penalties": weights, "initial scales": 2}
    assert results["hyperparameters"] == {"total": sum(counts.values()), **counts}
    assert results["settings"]["optimizer"] == name
    assert results["restored_bit_for_bit"] is True
    assert results["restored_runs"] == 2
    assert results["states_checked"] == 2 * 6
    assert len(results["meta_learning"]) == 2
    assert results["memory"]["trajectory_bytes"] == 6 * weights * 4
    assert results["memory"]["kept_bytes"] > results["memory"]["information_bytes"]
    assert results["limit_bits_per_weight_step"] > results["bits_per_weight_step"]
    if name == "sgd":
        # Six decays by a momentum of 0.9 and more come to less than one halving, so there is no bit to keep yet.
        assert results["memory"]["information_bytes"] == 0
    assert results["hypergradient"]["times_training_run"] > 0
    assert [row[0] for row in results["baseline"]["grid"]] == list(STARTS[name]["lr"])
    assert results["baseline"].keys() == {*STARTS[name], "grid"}
    assert all(results["baseline"][key] in tried for key, tried in STARTS[name].items())
    for key in ("before", "after", "before_other_starts", "after_other_starts"):
        assert list(results[key]) == ["training", "validation", "test"]
        assert list(results[key]["test"]) == ["loss", "loss_sd", "error", "error_sd"]
    assert all(math.isfinite(x) for x in numbers(results))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "restored bit for bit" in (tmp_path / "table.txt").read_text()
    for figure in FIGURES:
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        caption = (tmp_path / f"{figure}.txt").read_text().replace("\n", " ")
        assert f"6 steps of 8 examples by {OPTIMIZERS[name].name}" in caption
    learned = torch.load(tmp_path / "hyperparameters.pt")
    assert learned["log_l2"]["layer1.weight"].shape == (4, 64)
    assert [log_lr.shape for log_lr in learned["log_lr"]] == [(6, 1), (6, 1)]
    for fraction in ("momentum",) if name == "sgd" else ("beta1", "beta2"):
        assert learned[fraction].shape == (6,)
        assert ((learned[fraction] > 0) & (learned[fraction] < 1)).all()


def test_figures_have_a_panel_per_schedule_with_its_name():
    from reversible_hypergrad.cli import figures

    recipe = digits_problem("adamw", [4], steps=6).constant_recipe()
    figure = figures.schedules(recipe.detached(), recipe, "")
    assert [axis.get_ylabel() for axis in figure.axes] == ["learning rate", "beta1", "beta2", "weight decay"]
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear", "linear", "log"]


def test_table_of_adamw(command, tmp_path):
    _, out, _ = command(*TINY, "--optimizer", "adamw", "--no-figures", "--output", tmp_path)
    words = " ".join(out.split())
    assert "6 steps of 8 examples by AdamW" in words
    assert "beta1 0.9, beta2 0.99, weight decay 0.01, L2 penalty 0.0001, the best by validation loss of a grid of 2" in words
    assert re.search(r"on hypergradients, from learning rate 0\.00(33|1)\.", words)
    assert "6 beta2 values, 12 weight decays, 310 penalties" in words
    assert "one training run by torch.optim.AdamW" in words
    assert max(map(len, out.splitlines())) <= 88


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


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("adamw", 0.01)])
def test_learning_improves_validation_and_test(name, lr):
    problem = digits_problem(name, [16], steps=30)
    recipe = problem.constant_recipe(lr=lr, l2=1e-3)
    before = search.score(problem, recipe, "validation test", search.JUDGED_ORDERS[:2])
    learning = search.learn(problem, recipe, 12, 0.1, lambda loss: None)
    after = search.score(problem, recipe, "validation test", search.JUDGED_ORDERS[:2])
    assert learning.restored == 12
    for a, b in zip(after, before, strict=True):
        assert a.loss < 0.9 * b.loss


def test_chaotic_hypergradients_are_not_followed(monkeypatch):
    monkeypatch.setattr(search, "_CHAOTIC", 0.0)
    problem = digits_problem("sgd", [4], steps=4)
    recipe = problem.constant_recipe(lr=0.1, l2=1e-3)
    learning = search.learn(problem, recipe, 2, 0.1, lambda loss: None)
    assert learning.chaotic == [0, 1]
    values, before = recipe.values(), problem.constant_recipe(lr=0.1, l2=1e-3).values()
    assert values["lr"]["layer1.*"].flatten().tolist() == pytest.approx([0.081] * 4)
    assert torch.equal(values["momentum"]["*"], before["momentum"]["*"])


@by_optimizer
@pytest.mark.parametrize("sign", [-1, 1])
def test_any_coordinates_can_be_trained_with(name, sign):
    """However far a large step of the outer Adam may lead, unless training diverges."""
    problem = digits_problem(name, [4], steps=4)
    recipe = problem.constant_recipe()
    for setting in problem.optimizer.settings:
        if setting.name != "l2" and (name, setting.name, sign) != ("sgd", "lr", 1):
            for coordinate in recipe.coordinates[setting.name].values():
                coordinate += 50 * sign
    for tensor in recipe.tensors():
        tensor.requires_grad_()
    trained = problem.train(recipe, order=0)
    problem.loss(trained, problem.data.validation).backward()
    assert trained.report.restored


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.2), ("adamw", 0.01)])
def test_hypergradients_of_the_recipe_against_finite_differences(name, lr):
    problem = digits_problem(name, [5], steps=5)
    recipe = problem.constant_recipe(lr=lr, l2=1e-2)
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
    "meta-lr": (
        ["tune", "--meta-lr", "nan"],
        "--meta-lr: expected a number above 0 and at most 10 (it moves logarithms)",
    ),
    "large meta-lr": (["tune", "--meta-lr", "100"], "--meta-lr: expected a number above 0 and at most 10"),
    "hidden": (["tune", "--hidden", "50", "0"], "--hidden"),
    "batch size": (["tune", "--batch-size", "601"], "--batch-size: expected at most 600, the training examples, got 601"),
    "seed": (["tune", "--seed", "-1"], "--seed"),
    "large seed": (["tune", "--seed", str(2**63)], "--seed: expected a whole number of at most 4,294,967,295, got"),
    "long number": (["tune", "--steps", "9" * 5000], "--steps: expected a whole number of at least 2, got '999"),
    "steps": (["tune", "--steps", str(10**10)], "--steps: expected a whole number of at most 1,000,000,000"),
    "units": (["tune", "--hidden", str(2**63)], "--hidden: expected a whole number of at most 1,000,000,000"),
    "memory": (["tune", "--hidden", str(10**9)], "there is not enough memory for --steps 200 and --hidden [1000000000]"),
    "threads": (["tune", "--threads", "100000"], "--threads: expected a whole number of at most 1,024"),
    "data": (["tune", "--data", "a" * 300], "File name too long"),
    "device": (["tune", "--device", "cuda"], "--device: expected cpu, the only one so far, got 'cuda'"),
    "state bits": (["tune", "--state-bits", "16"], "--state-bits"),
    "optimizer": (["tune", "--optimizer", "adam"], "--optimizer: invalid choice: 'adam'"),
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
    lr, *others = OPTIMIZERS["sgd"].settings
    monkeypatch.setitem(OPTIMIZERS, "sgd", replace(OPTIMIZERS["sgd"], settings=(replace(lr, tried=(1e30,)), *others)))
    status, _, err = command(*TINY, "--output", tmp_path)
    assert (status, err.count("\n")) == (1, 1)
    assert "diverges at every learning rate" in err


def test_as_a_module():
    result = subprocess.run([sys.executable, "-m", "reversible_hypergrad", "tune", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "--meta-steps" in result.stdout
