"""Buffers that follow the weights, are replaced, or join steps: a loss that reads them is refused by every strategy."""

from __future__ import annotations

import pytest
import torch
from runs import STRATEGIES
from torch import nn

import reversible_hypergrad as rh

ALL = {**STRATEGIES, "forward mode": rh.ForwardMode()}
BY_REPLAY = [name for name in ALL if name not in ("unroll", "forward mode")]
STEPS = 10


class Teacher(nn.Module):
    """A buffer that follows the weights: a mean over the past."""

    def __init__(self, way):
        super().__init__()
        self.weight, self.way, self.begin = nn.Parameter(torch.randn(4)), way, 0
        self.register_buffer("teacher", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        if self.way == "in place":
            with torch.no_grad():
                self.teacher.mul_(0.9).add_(self.weight, alpha=0.1)
        elif self.way == "by data":
            self.teacher.data.mul_(0.9).add_(self.weight.data, alpha=0.1)
        elif self.way == "replaced":
            self.teacher = 0.9 * self.teacher + 0.1 * self.weight.detach()
        elif self.way == "with a graph":
            self.teacher = 0.9 * self.teacher + 0.1 * self.weight
        return x @ self.weight, x @ self.teacher


def squares(model, x, reads):
    student, teacher = model(x)
    return student.square().mean() + reads * (student - teacher).square().mean()


def run(strategy, way, loss=squares, reads=1.0, batches=None, **more):
    torch.manual_seed(0)
    model, rate = Teacher(way).double(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    batches = torch.randn(STEPS, 8, 4).double() if batches is None else batches
    arguments = {"optimizer": rh.SGD(rate), "hyperparameters": reads, "adjoint": ALL[strategy], **more}
    trained = rh.train(model, loss, batches, check_derivatives=False, **arguments)  # which finds it, too
    trained["weight"].square().sum().backward()
    return trained, rate.grad


@pytest.mark.parametrize("way", ["in place", "by data", "replaced"])
@pytest.mark.parametrize("strategy", ALL)
def test_a_loss_that_reads_a_buffer_which_follows_the_weights(strategy, way):
    """Unroll and forward mode would say +0.20 where -0.07 is true; the others see another loss on the way back."""
    if strategy in BY_REPLAY:
        with pytest.raises(rh.ReversalError):
            run(strategy, way)
    else:
        with pytest.raises(RuntimeError, match=r"the buffers 'teacher' follow the weights, .* evaluated again"):
            run(strategy, way)


@pytest.mark.parametrize("strategy", ["unroll", "forward mode"])
def test_a_loss_that_begins_to_read_it_late(strategy):
    calls = []

    def loss(model, batch, _):
        step, x = batch
        calls.append(step)
        return squares(model, x, float(step >= 7))

    with pytest.raises(RuntimeError, match="'teacher' follow the weights"):
        run(strategy, "in place", loss, batches=list(enumerate(torch.randn(STEPS, 8, 4).double())))
    assert calls[-1] == 7


@pytest.mark.parametrize("strategy", ALL)
def test_a_buffer_with_a_graph(strategy):
    with pytest.raises(RuntimeError, match=r"buffers without a graph, got 'teacher'"):
        run(strategy, "with a graph", reads=0.0)


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}], ids=["whole", "in parts"])
@pytest.mark.parametrize("way", ["in place", "replaced"])
@pytest.mark.parametrize("strategy", ALL)
def test_a_buffer_that_no_loss_reads_is_moved_once_per_step(strategy, way, more):
    def loss(model, x, _):
        return model(x)[0].square().mean()

    trained, gradient = run(strategy, way, loss, **more)
    _, expected = run("snapshots", "never", loss, **more)
    parts = more.get("accumulate", 1)
    assert int(trained.buffers["calls"]) == parts * STEPS
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)  # as exact strategies agree in float64

    torch.manual_seed(0)
    model, velocity, teacher = Teacher("never").double(), torch.zeros(4).double(), torch.zeros(4).double()
    weight = model.weight.detach()
    for x in torch.randn(STEPS, 8, 4).double():
        for _ in range(parts):
            teacher = 0.9 * teacher + 0.1 * weight
        velocity = 0.9 * velocity + 2 * x.T @ (x @ weight) / 8
        weight = weight - 0.1 * velocity
    # Integers of the reversible strategy have quanta of 2^-40 of the first gradient.
    torch.testing.assert_close(trained.buffers["teacher"], teacher, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@pytest.mark.parametrize("strategy", ["unroll", "forward mode"])
def test_a_count_that_the_loss_reads_is_no_fault(strategy, dtype):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.register_buffer("calls", torch.zeros((), dtype=dtype))

        def forward(self, x):
            self.calls = self.calls + 1
            return super().forward(x) / self.calls

    torch.manual_seed(0)
    counting, batches = Counting().double(), torch.randn(STEPS, 8, 4).double()
    counting.calls = counting.calls.to(dtype)
    plain = nn.Linear(4, 1).double()
    plain.load_state_dict(counting.state_dict(), strict=False)

    def gradient(model, loss, adjoint):
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        trained = rh.train(model, loss, list(enumerate(batches, 1)), optimizer=rh.SGD(rate), adjoint=adjoint)
        return torch.autograd.grad(sum(w.square().sum() for w in trained.values()), rate)[0]

    found = gradient(counting, lambda model, batch, _: model(batch[1]).square().mean(), ALL[strategy])
    expected = gradient(plain, lambda model, batch, _: (model(batch[1]) / batch[0]).square().mean(), rh.Snapshots())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("strategy", ["unroll", "forward mode"])
def test_frozen_parameters_that_follow_the_weights(strategy):
    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = nn.Linear(4, 1), nn.Linear(4, 1).requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                self.teacher.weight.lerp_(self.student.weight, 0.1)
            return self.student(x) - self.teacher(x)

    loss = lambda model, x, _: model(x).square().mean()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"wrote to the frozen parameter 'teacher.weight'"):
        rh.train(Twin(), loss, torch.randn(9, 8, 4), optimizer=rh.SGD(0.1), adjoint=ALL[strategy])


@pytest.mark.parametrize("strategy", ["unroll", "forward mode"])
def test_running_statistics_that_nobody_reads_are_no_fault(strategy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 1)).double()
    batches = torch.randn(STEPS, 8, 4).double()

    def gradient(adjoint):
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        trained = rh.train(model, lambda model, x, _: model(x).square().mean(), batches, optimizer=rh.SGD(rate), adjoint=adjoint)
        sum(w.square().sum() for w in trained.values()).backward()
        return rate.grad, trained.buffers

    (found, buffers), (expected, others) = gradient(ALL[strategy]), gradient(rh.Snapshots())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert all(torch.allclose(buffers[name], others[name]) for name in others)
