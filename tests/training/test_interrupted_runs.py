"""Ctrl-C at every line of training and of the way back: nothing of the user's has changed, and what comes next is right or is
refused."""

from __future__ import annotations

import gc
import random
import signal
from functools import partial

import numpy as np
import pytest
import torch
from interrupting import first, interrupt_at, lines_of
from open_files import open_files
from torch import nn

import reversible_hypergrad as rh

DATA = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
STRATEGIES = {
    "reversible": lambda place: rh.Reversible(buffer=place),
    "segments": lambda place: rh.Reversible(buffer=place, segments=2),
    "snapshots": lambda place: rh.Snapshots(store=place),
    "checkpoint": lambda place: rh.Checkpoint(store=place),
    "tree": lambda place: rh.RecursiveCheckpoint(store=place),
    "unroll": lambda place: rh.Unroll(),
    "forward mode": lambda place: rh.ForwardMode(),
    "truncated": lambda place: rh.Truncated(2, rh.Snapshots(store=place)),
    "DrMAD": lambda place: rh.DrMAD(),
    "Neumann": lambda place: rh.Neumann(2),
    "CG": lambda place: rh.ConjugateGradient(5),
}
RULES = {"SGD": rh.SGD, "Lion": lambda lr: rh.Lion(lr, (0.9, 0.9))}
# Strategy, rule, and whether the run is kept; the number of lines between two that are interrupted. Slowly, all.
QUICK = [
    ("reversible", "SGD", False, 31),
    ("reversible", "Lion", False, 61),
    ("snapshots", "SGD", False, 31),
    ("unroll", "SGD", True, 61),
]
SLOW = [
    *((strategy, "SGD", False, 1) for strategy in STRATEGIES),
    ("reversible", "Lion", False, 1),
    ("reversible", "SGD", True, 1),
    ("checkpoint", "SGD", True, 1),
]
by_case = pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)


class Task:
    def __init__(self, case, directory):
        strategy, rule, kept, self.stride = case
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        self.before = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.lr, self.l2 = (torch.tensor(value, requires_grad=True) for value in (0.1, 0.01))
        self.leaves = [self.lr, self.l2, *self.model.parameters()]
        self.directory, self.optimizer = directory, RULES[rule](self.lr)
        self.arguments = {"adjoint": STRATEGIES[strategy](directory), "hyperparameters": self.l2}
        if kept:
            self.arguments["resume"] = rh.Resume(directory / "kept", 2)

    def loss(self, model, batch, l2):
        noise = torch.randn(()) + np.random.rand() + random.random()  # noqa: NPY002
        return (model(batch) - 0.1 * noise).square().mean() + l2 * sum(p.square().sum() for p in model.parameters())

    def train(self):
        """What comes out is kept, or its file would be closed by a finalizer, where Python drops exceptions."""
        self.trained = rh.train(self.model, self.loss, DATA, optimizer=self.optimizer, **self.arguments)
        return self.trained

    def value(self, trained):
        return sum((w + 0.1).square().sum() for w in trained.values())

    def gradients(self, value=None):
        value = self.value(self.train()) if value is None else value
        found = torch.autograd.grad(value, self.leaves, retain_graph=True, allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    def check(self, settings, place):
        """After an interrupt. A kept run may stay, to be gone on with."""
        assert settings == settings_now(), place
        assert all(torch.equal(t, self.before[name]) for name, t in self.model.state_dict().items()), place
        assert all(leaf.grad is None for leaf in self.leaves)
        assert [path.name for path in self.directory.iterdir()] in ([], ["kept"])


def settings_now():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.cuda.flash_sdp_enabled(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        signal.getsignal(signal.SIGINT),
    )


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@by_case
def test_training(case, tmp_path):
    """What is trained afterwards is right."""
    task = Task(case, tmp_path)
    expected, settings = task.gradients(), settings_now()
    lines = lines_of(task.train)
    task.trained = None  # its file goes
    for place in first(lines)[:: task.stride]:
        task = Task(case, tmp_path)
        assert interrupt_at(place, task.train), lines[place]
        task.check(settings, lines[place])
        if open_files(tmp_path):  # the run that nobody has any more may be in a cycle
            gc.collect()
        assert not open_files(tmp_path), lines[place]
        assert same(task.gradients(), expected), lines[place]


@by_case
def test_the_way_back(case, tmp_path):
    """A second backward is right, or says that the first one was interrupted."""
    task = Task(case, tmp_path)
    expected, settings = task.gradients(), settings_now()
    lines = lines_of(partial(task.gradients, task.value(task.train())))
    for place in first(lines)[:: task.stride]:
        task = Task(case, tmp_path)
        value = task.value(task.train())
        assert interrupt_at(place, partial(task.gradients, value)), lines[place]
        task.check(settings, lines[place])
        try:
            assert same(task.gradients(value), expected), lines[place]
        except rh.ReversalError as error:
            assert str(error).startswith("an earlier backward through this run"), lines[place]  # noqa: PT017
        assert same(task.gradients(), expected), lines[place]


def test_many_losses(tmp_path):
    """A run must not go on keeping for hypergradients() what a backward brings to it."""
    task = Task(("snapshots", "SGD", False, 23), tmp_path)
    expected, settings = task.gradients(), settings_now()

    def walk(value):
        rh.hypergradients([value, 2 * value], task.leaves)

    lines = lines_of(partial(walk, task.value(task.train())))
    for place in first(lines)[:: task.stride]:
        value = task.value(task.train())
        assert interrupt_at(place, partial(walk, value)), lines[place]
        task.check(settings, lines[place])
        try:
            assert same(task.gradients(value), expected), lines[place]
        except rh.ReversalError as error:
            assert str(error).startswith("an earlier backward through this run"), lines[place]  # noqa: PT017


def test_check_replayable(tmp_path):
    task = Task(("reversible", "SGD", False, 29), tmp_path)
    settings = settings_now()
    check = partial(rh.check_replayable, task.model, task.loss, DATA[0], task.l2)
    lines = lines_of(check)
    for place in first(lines)[:: task.stride]:
        assert interrupt_at(place, check), lines[place]
        task.check(settings, lines[place])
