"""Where states wait: on the device, on the host or in a file, with the same bits; and what is let go, when."""

from __future__ import annotations

import errno
import gc
import os

import pytest
import torch
from kinds import EVERYTHING, by_train, error
from models import batch_indices, cross_entropy, problem, validation
from open_files import open_files
from small_task import Task
from torch import nn

import reversible_hypergrad as rh

MAKERS = {
    "snapshots": lambda store: rh.Snapshots(store=store),
    "checkpoint": lambda store: rh.Checkpoint(store=store),
    "tree": lambda store: rh.RecursiveCheckpoint(store=store),
    "slots": lambda store: rh.RecursiveCheckpoint(slots=3, store=store),
    "truncated": lambda store: rh.Truncated(20, rh.Snapshots(store=store)),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.fixture
def task():
    return Task()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_places_agree(make, tmp_path, dtype):
    """Learning rates and momenta are learned, so velocities are kept as well; the momenta make two groups, with a file each."""
    results = [by_train("mlp", EVERYTHING, dtype, make(place), 13) for place in ("device", "host", tmp_path)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0].grads, other.grads, strict=True))
        assert other.trained.report.kept_bytes == results[0].trained.report.kept_bytes > 0
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["convolution and batch norm", "SiLU, Mish, group norm"])
def test_a_second_backward_gives_the_same_bits(name, make, tmp_path):
    """It trains once more, from the initial weights and buffers."""
    model, x, y = problem(name, torch.float32)
    trained = rh.train(
        model, lambda m, i, h: cross_entropy(m(x[i]), y[i]), batch_indices, steps=9, optimizer=rh.SGD(0.1), adjoint=make(tmp_path)
    )
    buffers = {n: b.clone() for n, b in trained.buffers.items()}
    value = validation(model, trained)
    first = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(value, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert isinstance(make("device"), rh.Truncated) or all(bool(g.any()) for g in first)
    assert all(torch.equal(b, buffers[n]) for n, b in trained.buffers.items())
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


ALL = {
    **{name: maker("device") for name, maker in MAKERS.items()},
    "reversible, 4 segments": rh.Reversible(segments=4),
    "unroll": rh.Unroll(),
    "forward mode": rh.ForwardMode(),
    "DrMAD": rh.DrMAD(),
    "Neumann": rh.Neumann(3),
    "conjugate gradient": rh.ConjugateGradient(10),
}


@pytest.fixture(params=ALL)
def adjoint(request):
    return ALL[request.param]


def convex(task):
    """So that every strategy has an answer."""
    task.model = nn.Linear(4, 1)
    task.before = [p.detach().clone() for p in task.model.parameters()]
    return task


def test_retain_graph(task, adjoint):
    trained = convex(task).train(adjoint=adjoint)
    downstream = sum(w.square().sum() for w in trained.values())
    inputs = [task.log_l2, *task.model.parameters()]
    first = torch.autograd.grad(downstream, inputs, retain_graph=True, allow_unused=True)
    again = torch.autograd.grad(downstream, inputs, allow_unused=True)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].abs() > 0
    with pytest.raises(RuntimeError, match="second time"):
        downstream.backward()


def test_several_losses(task, adjoint):
    """Gradients of a sum are the sum of gradients, and weights that a loss does not use count as zero."""
    trained = convex(task).train(adjoint=adjoint)
    weight, bias = trained.values()
    parts = [torch.autograd.grad(part, [task.log_l2], retain_graph=True)[0] for part in (weight.square().sum(), 3 * bias.sum())]
    (both,) = torch.autograd.grad(weight.square().sum() + 3 * bias.sum(), [task.log_l2])
    assert float(parts[0]) != 0
    assert float(parts[1]) != 0
    assert float(both) == pytest.approx(float(sum(parts)), rel=1e-5)


HARDLY_ANY = [(name, steps) for name in ALL for steps in (0, 1, 2) if steps or name not in ("Neumann", "conjugate gradient")]


@pytest.mark.parametrize(("name", "steps"), HARDLY_ANY)
def test_hardly_any_steps(name, steps):
    adjoint = ALL[name]
    x, y = torch.randn(8, 4).double(), torch.randn(8, 1).double()
    model = nn.Linear(4, 1).double()
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def run(adjoint):
        def loss(model, batch, h):
            return (model(x) - y).square().mean()

        optimizer = rh.SGD(lr)
        trained = rh.train(model, loss, lambda step: None, steps=steps, optimizer=optimizer, adjoint=adjoint, initial=start)
        downstream = sum(w.square().sum() for w in trained.values())
        return trained, torch.autograd.grad(downstream, [lr, *start.values()])

    (trained, found), (expected_weights, expected) = run(adjoint), run(rh.Unroll())
    for n, w in trained.items():
        torch.testing.assert_close(w, expected_weights[n], rtol=1e-12, atol=1e-12)
    if adjoint.exact or isinstance(adjoint, rh.Truncated):
        assert max(error(f, e) for f, e in zip(found, expected, strict=True)) < 1e-9
    if steps == 0:
        assert all(torch.equal(trained[n], w) for n, w in start.items())
        assert all(torch.equal(f, 2 * w) for f, w in zip(found[1:], start.values(), strict=True))


def test_a_file_goes_with_the_last_reference(task, make, tmp_path):
    trained = task.train(adjoint=make(tmp_path))
    assert len(open_files(tmp_path)) == 1
    del trained
    gc.collect()
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_a_file_goes_after_backward(task, make, tmp_path):
    trained = task.train(adjoint=make(tmp_path))
    task.backward(trained)
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_without_gradients_there_is_no_file(task, make, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda *a: pytest.fail("something was written"))
    with torch.no_grad():
        task.train(adjoint=make(tmp_path))
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_a_training_error_removes_the_file(task, make, tmp_path):
    def batch(step):
        if step == 50:
            raise KeyError("lost")
        return task.batch(step)

    with pytest.raises(KeyError, match="lost"):
        task.train(batch=batch, adjoint=make(tmp_path))
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]
    task.check_untouched()


def test_one_flipped_bit_on_disk(task, make, tmp_path):
    trained = task.train(adjoint=make(tmp_path))
    (path,) = open_files(tmp_path)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(rh.ReversalError, match=rf"file in {tmp_path} was damaged: the \d+ bytes at offset 0"):
        task.backward(trained)
    task.check_untouched()
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_a_truncated_file(task, make, tmp_path):
    trained = task.train(adjoint=make(tmp_path))
    (path,) = open_files(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(rh.ReversalError, match=rf"file in {tmp_path} was truncated"):
        task.backward(trained)
    task.check_untouched()
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_after_a_damaged_file_backward_may_be_tried_again(task, make, tmp_path):
    """The states are gone, but training once more brings them back."""
    trained = task.train(adjoint=make(tmp_path))
    (path,) = open_files(tmp_path)
    os.truncate(path, 0)
    downstream = sum(w.square().sum() for w in trained.values())
    with pytest.raises(rh.ReversalError, match="truncated"):
        downstream.backward(retain_graph=True)
    task.check_untouched()
    downstream.backward()
    again = Task()
    again.backward(again.train(adjoint=make("device")))
    assert torch.equal(task.log_l2.grad, again.log_l2.grad)


def test_a_full_disk(task, make, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left on device.*Free space.*store=") as caught:
        task.train(adjoint=make(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]
    task.check_untouched()


def test_a_disk_that_fills_up_during_backward(task, tmp_path, monkeypatch):
    """Training again between two states keeps more of them."""
    trained = task.train(adjoint=rh.RecursiveCheckpoint(store=tmp_path))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left on device"):
        task.backward(trained)
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]
    task.check_untouched()


def test_one_flipped_bit_in_memory(task, make, monkeypatch):
    """Whatever is kept in memory has no sum, but the losses tell."""
    from reversible_hypergrad.storage.memory import MemoryPlanes

    stores = []
    before = MemoryPlanes.__init__
    monkeypatch.setattr(MemoryPlanes, "__init__", lambda self, *a: (stores.append(self), before(self, *a))[1])
    trained = task.train(adjoint=make("device"))
    stores[0].top()[7 * 4 + 2] ^= 1  # a high bit of the eighth weight's fraction
    with pytest.raises(rh.ReversalError, match=r"step \d+: its loss was .* in training and .* on the way back"):
        task.backward(trained)
    task.check_untouched()


def long_run(adjoint, steps):
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    x, y = torch.randn(50, 4, 2).double(), torch.randn(50, 4, 1).double()
    lr = torch.tensor(0.001, dtype=torch.float64, requires_grad=True)
    trained = rh.train(
        model,
        lambda m, i, h: (m(x[i]) - y[i]).square().mean(),
        lambda t: t % 50,
        steps=steps,
        optimizer=rh.SGD(lr),
        adjoint=adjoint,
    )
    sum(w.square().sum() for w in trained.values()).backward()
    return trained.report, [lr.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("steps", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_many_steps(steps):
    _, expected = long_run(rh.Snapshots(), steps)
    for adjoint in (rh.RecursiveCheckpoint(), rh.RecursiveCheckpoint(slots=5), rh.Checkpoint()):
        report, found = long_run(adjoint, steps)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
        assert report.checks == steps
        state = 2 * 32 * 8  # weights and velocities of 2 parameters, each padded to 16
        assert report.kept_bytes <= (2 * steps) ** 0.5 * state
