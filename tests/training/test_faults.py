"""Planted faults: each ends in an error that names it, and leaves model and hyperparameters as they were."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from open_files import open_files
from small_task import STEPS, Task

import reversible_hypergrad as rh
from reversible_hypergrad.adjoints.reversible_run import ReversibleRun


@pytest.fixture
def task():
    return Task()


@pytest.fixture
def runs(monkeypatch):
    """Every reversible run that is started, to be damaged."""
    started = []
    before = ReversibleRun.__init__

    def spy(self, *arguments):
        before(self, *arguments)
        started.append(self)

    monkeypatch.setattr(ReversibleRun, "__init__", spy)
    return started


def test_unseeded_randomness(task):
    own = torch.Generator()
    own.seed()

    def loss(model, batch, hyperparameters):
        noise = 0.1 * torch.randn(batch[0].shape, generator=own)
        return task.loss(model, (batch[0] + noise, batch[1]), hyperparameters)

    trained = task.train(loss=loss)
    with pytest.raises(rh.ReversalError, match=r"step 59 .*gradient at step 59 is another one at each call.*unseeded random"):
        task.backward(trained)
    task.check_untouched()


def test_batches_that_differ_on_the_second_call(task):
    calls = []

    def batch(step):
        calls.append(step)
        return task.x[step] + 0.01 * len(calls), task.y[step]

    trained = task.train(batch=batch)
    with pytest.raises(rh.ReversalError, match="the batch of step 59 is another one each time"):
        task.backward(trained)
    task.check_untouched()


def test_a_module_that_counts_its_calls(task):
    class Counter(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * (1 + 0.01 * self.calls)

    task.model.append(Counter())
    trained = task.train()
    with pytest.raises(rh.ReversalError, match="counts its calls"):
        task.backward(trained)
    task.check_untouched()


def test_another_number_of_threads_does_not_matter(set_num_threads):
    task = Task(width=300)
    task.x, task.y = torch.randn(STEPS, 200, 4), torch.randn(STEPS, 200, 1)
    set_num_threads(2)
    trained = task.train()
    set_num_threads(1)
    task.backward(trained)
    assert torch.get_num_threads() == 1
    assert trained.report.restored


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("what", ["x", "v", "plane"])
def test_one_flipped_bit(task, runs, what, state_bits):
    trained = task.train(state_bits=state_bits)
    group = runs[0].groups[0]
    tensor = {"x": group.state.x, "v": group.state.z[0], "plane": group.store.top()}[what]
    tensor[5] ^= 1
    with pytest.raises(rh.ReversalError, match="did not restore the state"):
        task.backward(trained)
    task.check_untouched()


@pytest.mark.parametrize("verify_every", [7, 1000])
def test_a_fault_is_found_between_checks(task, runs, verify_every):
    trained = task.train(verify_every=verify_every)
    runs[0].groups[0].state.x[5] ^= 1
    where = "the steps 56 to 59" if verify_every == 7 else "the steps 0 to 59"
    with pytest.raises(rh.ReversalError, match=where):
        task.backward(trained)
    task.check_untouched()


def test_one_flipped_bit_on_disk(task, tmp_path):
    trained = task.train(buffer=tmp_path)
    (path,) = open_files(tmp_path)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(rh.ReversalError, match=rf"file in {tmp_path} was damaged: the \d+ bytes at offset 0"):
        task.backward(trained)
    task.check_untouched()
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]


def test_a_truncated_file(task, tmp_path):
    trained = task.train(buffer=tmp_path)
    (path,) = open_files(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(rh.ReversalError, match=rf"file in {tmp_path} was truncated"):
        task.backward(trained)
    task.check_untouched()


def test_a_full_disk(task, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left on device.*Free space") as caught:
        task.train(buffer=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not [*open_files(tmp_path), *tmp_path.iterdir()]
    task.check_untouched()


def test_after_a_failure_there_is_no_second_try(task, runs):
    trained = task.train()
    runs[0].groups[0].state.x[5] ^= 1
    downstream = sum(w.square().sum() for w in trained.values())
    with pytest.raises(rh.ReversalError):
        downstream.backward(retain_graph=True)
    with pytest.raises(rh.ReversalError, match="an earlier backward through this run failed"):
        downstream.backward()
    task.check_untouched()


def test_a_step_that_cannot_be_taken(task):
    def batch(step):
        return task.x[step], task.y[step] * (float("nan") if step == 17 else 1.0)

    with pytest.raises(FloatingPointError, match=r"step 17: .*weight"):
        task.train(batch=batch)
    task.check_untouched()


@pytest.mark.parametrize("state_bits", [64, 32])
def test_a_spike_gets_room_and_is_undone(task, state_bits):
    def batch(step):
        return task.x[step], task.y[step] * (1e6 if step == STEPS - 2 else 1.0)

    trained = task.train(batch=batch, state_bits=state_bits)
    assert max(w.abs().max() for w in trained.values()) > 1e4
    task.backward(trained)
    assert trained.report.restored
    # The spike's bits, once.
    assert trained.report.information_bits * STEPS > 8 + STEPS * trained.report.limit_bits


def test_a_function_without_second_derivative(task):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g

    for loss in (
        lambda model, batch, h: Once.apply(model(batch[0])).square().mean(),
        # As the last operation it gets a gradient that needs none itself, and torch leaves no mark in the gradient's graph.
        lambda model, batch, h: Once.apply(model(batch[0]).mean()),
    ):
        with pytest.raises(RuntimeError, match=r"no second derivative.*once_differentiable"):
            task.train(loss=loss)
        assert not rh.check_replayable(task.model, loss, task.batch(0), task.log_l2)
        task.check_untouched()


def test_an_operation_whose_second_derivative_torch_lacks(task):
    """It is refused at the first step, not after all of training."""
    calls = []

    def loss(model, batch, h):
        calls.append(1)
        logits = model(batch[0]).expand(8, 5)[:, None].log_softmax(-1)
        return torch.nn.functional.ctc_loss(logits, torch.tensor([[1, 2]]), torch.tensor([8]), torch.tensor([2])) * h.exp()

    with pytest.raises(RuntimeError, match=r"no second derivative in torch.*check_replayable"):
        task.train(loss=loss)
    assert len(calls) == 3  # in float64 in two ways, and as it is
    checked = rh.check_replayable(task.model, loss, task.batch(0), task.log_l2)
    assert not checked
    assert "ctc_loss" in checked.problems[-1]
    task.check_untouched()


def test_hyperparameters_changed_before_backward(task):
    trained = task.train()
    with torch.no_grad():
        task.log_l2 += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        task.backward(trained)
    assert task.log_l2.grad is None


def test_an_exception_in_the_loss_while_undoing(task):
    calls = []

    def loss(model, batch, hyperparameters):
        calls.append(1)
        if len(calls) == STEPS + 10:
            raise KeyError("lost")
        return task.loss(model, batch, hyperparameters)

    state = torch.get_rng_state()
    trained = task.train(loss=loss)
    with pytest.raises(KeyError, match="lost"):
        task.backward(trained)
    assert torch.equal(torch.get_rng_state(), state)
    task.check_untouched()


def test_a_loss_that_changed_between_two_backwards(task):
    offset = [0.0]

    def loss(model, batch, hyperparameters):
        return task.loss(model, (batch[0] + offset[0], batch[1]), hyperparameters)

    trained = task.train(loss=loss)
    downstream = sum(w.square().sum() for w in trained.values())
    downstream.backward(retain_graph=True)
    before = task.log_l2.grad.clone()
    offset[0] = 1.0
    for message in ("did not come to the same weights", "an earlier backward through this run failed"):
        with pytest.raises(rh.ReversalError, match=message):
            downstream.backward(retain_graph=True)
    assert torch.equal(task.log_l2.grad, before)
