"""docs/faq.md quotes real messages: each quoted one is provoked here, and has the type that its heading says."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from open_files import open_files
from tape import TapeGraphs
from torch.utils.checkpoint import checkpoint

import reversible_hypergrad as rh
from reversible_hypergrad.gradients import captured
from reversible_hypergrad.reversible import outcome
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.rules import SettingSpec

PAGE = Path(__file__).parents[2] / "docs" / "faq.md"
STEPS = 12
torch.manual_seed(0)
X, Y = torch.randn(STEPS, 8, 4), torch.randn(STEPS, 8, 1)
DATA = list(zip(X, Y, strict=True))


def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def loss(model, batch, hyperparameters=None):
    return F.mse_loss(model(batch[0]), batch[1])


def train(model=None, loss=loss, batches=DATA, sgd=None, **settings):
    return rh.train(model or net(), loss, batches, optimizer=sgd or rh.SGD(lr=0.05), **settings)


def differentiate(trained):
    sum(w.square().sum() for w in trained.values()).backward()


def scaled_at_7(factor):
    return lambda step: (X[step], Y[step] * (factor if step == 7 else 1.0))


def another_batch_each_time():
    calls = []

    def batch(step):
        calls.append(step)
        return X[step] + 0.01 * len(calls), Y[step]

    differentiate(train(batches=batch, steps=STEPS))


def unseeded():
    own = torch.Generator()

    def noisy(model, batch, hyperparameters):
        return F.mse_loss(model(batch[0] + 0.1 * torch.randn(8, 4, generator=own)), batch[1])

    differentiate(train(loss=noisy))


def changing_its_batch():
    def noisy(model, batch, hyperparameters):
        return F.mse_loss(model(batch[0].add_(0.1)), batch[1])

    train(loss=noisy, batches=lambda step: (X[step].clone(), Y[step]), steps=STEPS, accumulate=2)


def unseeded_in_floats():
    own = torch.Generator()

    def noisy(model, batch, hyperparameters):
        return F.mse_loss(model(batch[0] + 0.1 * torch.randn(8, 4, generator=own)), batch[1])

    differentiate(train(loss=noisy, adjoint=rh.Checkpoint()))


def not_convex():
    log_scale = torch.tensor(0.0, requires_grad=True)
    sgd = rh.SGD(lr=0.05)
    trained = train(
        loss=lambda m, b, h: h.exp() * loss(m, b), sgd=sgd, hyperparameters=log_scale, adjoint=rh.ConjugateGradient(iterations=50)
    )
    differentiate(trained)


def many_tangents():
    rates = torch.full((101,), 0.05, requires_grad=True)
    train(batches=lambda step: DATA[step % STEPS], steps=101, sgd=rh.SGD(lr=rates), adjoint=rh.ForwardMode())


def a_setting_that_changes(times_before=0):
    offset = [0.0]
    trained = train(loss=lambda model, batch, _: F.mse_loss(model(batch[0] + offset[0]), batch[1]))
    downstream = sum(w.square().sum() for w in trained.values())
    for _ in range(times_before):
        downstream.backward(retain_graph=True)
    offset[0] = 1.0
    downstream.backward(retain_graph=True)


def a_second_try():
    offset = [0.0]
    trained = train(loss=lambda model, batch, _: F.mse_loss(model(batch[0] + offset[0]), batch[1]))
    downstream = sum(w.square().sum() for w in trained.values())
    offset[0] = 1.0
    with pytest.raises(rh.ReversalError):
        downstream.backward(retain_graph=True)
    downstream.backward()


def a_damaged_file(tmp_path):
    trained = train(batches=lambda step: DATA[step % STEPS], steps=80, adjoint=rh.Reversible(buffer=tmp_path))
    (path,) = open_files(tmp_path)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    differentiate(trained)


def changed_in_place():
    lr = torch.tensor(0.05, requires_grad=True)
    trained = train(sgd=rh.SGD(lr=lr))
    with torch.no_grad():
        lr += 1
    differentiate(trained)


def backward_twice():
    downstream = sum(w.sum() for w in train().values())
    downstream.backward()
    downstream.backward()


def second_derivative():
    model = net()
    trained = train(model)
    torch.autograd.grad(sum(w.sum() for w in trained.values()), list(model.parameters()), create_graph=True)


def infinite_weight():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    train(model)


def grown_unseen():
    """As on a GPU, where the host looks when the run has ended."""
    rates = torch.full((30,), 0.05)
    rates[20] = 1e12
    with mock.patch.object(outcome, "is_late", return_value=True), mock.patch.object(State, "is_late", True):
        train(batches=lambda step: DATA[step % STEPS], steps=30, sgd=rh.SGD(lr=rates))


class Forgetful(rh.Rule):
    states = {"v": 1}  # noqa: RUF012
    settings = {"lr": SettingSpec(0.1)}  # noqa: RUF012
    elementwise = True
    shrink = 0.0

    def decay(self, h, t):
        return {"v": self.shrink}

    def increments(self, h, t, g, w, z):
        yield "v", g.tanh()

    def update(self, h, t, z, logged):
        return h.lr * z["v"]


class SaysLinear(Forgetful):
    linear = True
    shrink = 0.9


class LooksAtItself(Forgetful):
    shrink = 0.9

    def increments(self, h, t, g, w, z):
        yield "v", g - z["v"].tanh()


def of_another_version():
    sgd = rh.ReversibleSGD(net().parameters(), lr=0.1)
    state = sgd.state_dict()
    state["state"][0]["format_version"] = 2
    sgd.load_state_dict(state)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


class Sparse(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 1, sparse=True)

    def forward(self, x):
        return self.table(torch.zeros(8, dtype=torch.long))


def outside_model():
    model = net()
    train(model, loss=lambda _, batch, h: loss(model, batch))


class Optimizer:
    """Three steps taken."""

    def __init__(self):
        self.model = net()
        self.sgd = rh.ReversibleSGD(self.model.parameters(), lr=0.1)
        for step in range(3):
            self.sgd.step(self.closure(step))

    def closure(self, step):
        def closure():
            self.sgd.zero_grad()
            value = loss(self.model, DATA[step])
            value.backward()
            return value

        return closure


def edited():
    o = Optimizer()
    with torch.no_grad():
        o.model[0].weight += 1
    o.sgd.step(o.closure(0))


def past_a_boundary():
    o = Optimizer()
    o.sgd.mark_boundary()
    o.sgd.step_back(o.closure(2))


def step_inside():
    o = Optimizer()
    o.sgd.step_back(lambda: o.sgd.step(o.closure(2)))


def without_backward():
    o = Optimizer()
    o.sgd.step_back(o.sgd.zero_grad)


def wrong_order():
    o = Optimizer()
    o.sgd.step_back(o.closure(0))


class DistributedDataParallel(torch.nn.Linear):
    """By its name, without processes."""

    def __init__(self):
        super().__init__(4, 1)


def in_another_thread():
    def elsewhere(model, batch, _):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(train).result()
        return loss(model, batch)

    train(loss=elsewhere)


def in_a_fork(action):
    """As far as the library can tell; real ones are in tests/replay."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with mock.patch.object(os, "getpid", return_value=-1):
            action()
    finally:
        torch.set_num_threads(threads)


def back_in_a_fork():
    value = sum(w.sum() for w in train().values())
    in_a_fork(value.backward)


def train_in_a_fork():
    in_a_fork(train)


def with_tapes(**settings):
    """Operations recorded in the place of CUDA graphs."""
    with mock.patch.object(captured, "CudaGraphs", TapeGraphs):
        train(cuda_graph=True, **settings)


def on_meta(step):
    return X[step].to("meta"), Y[step]


def checkpointed(model, batch, hyperparameters=None):
    return checkpoint(model, batch[0], use_reentrant=False).square().mean()


def spectral():
    return torch.nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4)), torch.nn.Linear(4, 1))


QUICK = {"backend": "eager"}


def a_counter_in_the_loss():
    at = {"step": 0}

    def batch(step):
        at["step"] = step
        return X[step], Y[step]

    with torch._dynamo.config.patch(recompile_limit=2):
        train(compile=QUICK, batches=batch, steps=STEPS, loss=lambda model, batch, _: loss(model, batch) * (1 + at["step"]))


@torch.compiler.assume_constant_result
def frozen():
    return random.random()


PROVOKED: dict[str, list[Callable[..., object]]] = {
    "undoing step … did not restore the state before": [another_batch_each_time, unseeded, a_setting_that_changes],
    "the batch of step … is another one each time it is asked for": [another_batch_each_time],
    "the gradient at step … is another one at each call": [unseeded],
    "batch and gradient of step … are the same when asked for twice now": [
        a_setting_that_changes,
        lambda: differentiate(train(sgd=LooksAtItself())),
    ],
    "step …: its loss was … in training and … on the way back": [unseeded_in_floats],
    "accumulate: step …: the loss or gradient of … was another one when it was evaluated again": [changing_its_batch],
    "an earlier backward through this run failed": [a_second_try],
    "training once more did not come to the same weights as before at step …": [lambda: a_setting_that_changes(1)],
    "the trajectory's file … was damaged": [a_damaged_file],
    "one of the variables needed for gradient computation has been modified by an inplace operation": [changed_in_place],
    "Trying to backward through the graph a second time": [backward_twice],
    "train() was differentiated with create_graph=True": [second_derivative],
    "step …: …: its gradient is not finite": [lambda: train(batches=scaled_at_7(float("nan")), steps=STEPS)],
    "step …: the loss is …, expected a finite number": [
        lambda: train(batches=scaled_at_7(float("nan")), steps=STEPS, adjoint=rh.Snapshots())
    ],
    "step …: …: a weight (…) would leave the range of floating-point numbers": [
        lambda: train(sgd=rh.SGD(lr=1e39)),
        lambda: train(net().half(), lambda model, batch, _: model(batch[0].half()).square().mean(), sgd=rh.SGD(lr=1e6)),
    ],
    "step …: …: a state of its optimizer would leave the range of floating-point numbers": [
        lambda: train(batches=scaled_at_7(1e37), steps=STEPS, adjoint=rh.Reversible(state_bits=32))
    ],
    "step …: …: a weight grew out of its integers between two looks": [grown_unseen],
    "…: its weights must be finite, got": [infinite_weight],
    "loss: something in it has no second derivative": [lambda: train(loss=lambda m, b, _: Once.apply(m(b[0])).square().mean())],
    "…: expected a dense gradient, got layout": [lambda: train(Sparse())],
    "another thread is inside of a run": [in_another_thread],
    "backward was called in a forked process": [back_in_a_fork],
    "a run was begun in a forked process": [train_in_a_fork],
    "model: got a DistributedDataParallel": [lambda: train(DistributedDataParallel())],
    "batches: got an iterator": [lambda: train(batches=iter(DATA))],
    "batches: expected a sequence or a function step -> batch, got DataLoader": [
        lambda: train(batches=torch.utils.data.DataLoader(DATA))
    ],
    "steps: expected at most …, the number of batches": [lambda: train(steps=STEPS + 1)],
    "loss: it depends on a tensor of shape … that requires grad but is neither": [outside_model],
    "loss: the buffers … follow the weights": [
        lambda: train(spectral(), adjoint=rh.Unroll(), check_derivatives=False),
        lambda: train(spectral(), adjoint=rh.ForwardMode(), check_derivatives=False),
    ],
    "loss: rh.Unroll() expected no torch.utils.checkpoint": [
        lambda: train(loss=checkpointed, adjoint=rh.Unroll(), check_derivatives=False)
    ],
    "loss: its result does not depend on the model's weights": [lambda: train(loss=lambda m, b, _: loss(m, b).detach())],
    "nesterov: rh.Reversible() cannot undo a Nesterov step": [lambda: train(sgd=rh.SGD(lr=0.1, nesterov=True))],
    "adjoint: ForwardMode(limit=100) got … hyperparameters": [many_tangents],
    "adjoint: ConjugateGradient needs a positive definite Hessian": [not_convex],
    "budget: no exact strategy fits …; … needs least": [
        lambda: train(adjoint="auto", budget=100),
        lambda: rh.plan(net(), steps=10, budget=100).adjoint,
    ],
    "budget: expected none unless adjoint='auto'": [lambda: train(adjoint=rh.Snapshots(), budget="1 GB")],
    "adjoint: expected an object such as rh.Reversible(),": [
        lambda: train(adjoint=rh.Snapshots),
        lambda: train(adjoint="snapshots"),
    ],
    "momentum: rh.Reversible() expected numbers in (0, 1], got 0": [
        lambda: train(sgd=rh.SGD(lr=0.1, momentum=0.0)),
        lambda: train(sgd=rh.RMSprop(momentum=0.0)),
    ],
    "optimizer: rh.Reversible() expected … to decay … by a factor from 2^-16 to 1, got": [
        lambda: train(sgd=rh.SGD(lr=0.1, momentum=1e-5)),
        lambda: train(sgd=Forgetful()),
    ],
    "momentum: expected momentum 0 without nesterov=True, got": [lambda: rh.TracedSGD(lr=0.1, momentum=0.9)],
    "optimizer: rh.Muon expected matrices, got": [lambda: train(sgd=rh.Muon())],
    "optimizer: no key matches the parameter … got keys": [lambda: train(sgd=rh.PerParameter({"0.*": rh.Lion()}))],
    "weight_decay: rh.Reversible() expected 0 with rh.LAMB": [lambda: train(sgd=rh.LAMB(weight_decay=0.1))],
    "optimizer: expected rh.SGD(...) or another rh.Rule, got": [
        lambda: train(sgd=torch.optim.SGD(net().parameters(), lr=0.1)),
        lambda: train(sgd=rh.SGD),
    ],
    "…: expected increments and update that are linear in g, w and z": [lambda: train(sgd=SaysLinear(), adjoint=rh.Snapshots())],
    "lr: expected numbers >= 0, got": [lambda: train(sgd=rh.SGD(lr=torch.tensor(-1.0)))],
    "lr: expected a tensor of shape () or": [lambda: train(sgd=rh.SGD(lr=torch.ones(7)))],
    "cuda_graph: expected the model's weights on a CUDA device": [lambda: train(cuda_graph=True)],
    "cuda_graph: Unroll() differentiates through more than": [lambda: with_tapes(adjoint=rh.Unroll())],
    "batches: step …: with cuda_graph=True expected all tensors of a batch on": [
        lambda: with_tapes(batches=on_meta, steps=STEPS, check_derivatives=False)
    ],
    "batches: step …: with cuda_graph=True expected whatever is not a tensor to be the same in every step": [
        lambda: with_tapes(batches=lambda step: (X[step], Y[step], step), steps=STEPS)
    ],
    "cuda_graph: the loss or the model does something that a CUDA graph cannot hold": [
        lambda: with_tapes(loss=lambda model, batch, _: loss(model, batch) * (1 + batch[0].sum().item()))
    ],
    "cuda_graph: at step … the captured graph gave another loss, gradient or buffer": [
        lambda: with_tapes(loss=lambda model, batch, _: loss(model, batch) * (1 + random.random()))
    ],
    "compile: torch.compile refuses": [
        lambda: train(compile=QUICK, loss=lambda model, batch, _: loss(model, batch) * (1 if batch[0].sum().item() > 0 else 2))
    ],
    "compile: something that is not a tensor changes from step to step": [a_counter_in_the_loss],
    "compile: at step … the compiled gradient is not what the loss gives by itself": [
        lambda: train(compile=QUICK, loss=lambda model, batch, _: loss(model, batch) * frozen())
    ],
    "model: got a module compiled by torch.compile": [lambda: train(model=torch.compile(net()))],
    "step_back() of step … did not restore the state before it": [wrong_order],
    "…: had a gradient when the step was taken, but the closure left none": [without_backward],
    "step_back() found no step to undo": [past_a_boundary],
    "…: edited, resized or replaced since the last step": [edited],
    "step() was called inside the closure of step_back()": [step_inside],
    "state_dict: expected format version …, got version …, of another release": [of_another_version],
    "nesterov=True cannot be undone": [lambda: rh.ReversibleSGD(net().parameters(), lr=0.1, nesterov=True)],
    "Invalid momentum value: …. Expected a number in [2^-16, 1]": [
        lambda: rh.ReversibleSGD(net().parameters(), lr=0.1, momentum=0),
        lambda: rh.ReversibleSGD(net().parameters(), lr=0.1, momentum=1e-5),
    ],
}

TEXT = PAGE.read_text()
KINDS = {message: kind for kind, message in re.findall(r"^### (\w+): `(.*)`$", TEXT, re.MULTILINE)}
SEEN = re.findall(r"^- `([^`]*)`:? ", TEXT, re.MULTILINE)  # parts of a message, quoted inside its entry


def test_every_quoted_message_is_provoked() -> None:
    assert set(PROVOKED) == {*KINDS, *SEEN}


@pytest.mark.parametrize("message", PROVOKED)
def test_the_message_is_quoted_right(message: str, tmp_path: Path) -> None:
    pattern = re.escape(message).replace("…", r"[^\n]*?")
    for provoke in PROVOKED[message]:
        with pytest.raises((ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError)) as caught:
            provoke(tmp_path) if provoke is a_damaged_file else provoke()
        find = re.match if message in KINDS else re.search
        assert find(pattern, str(caught.value)), str(caught.value)
        assert type(caught.value).__name__ == KINDS.get(message, "ReversalError")
