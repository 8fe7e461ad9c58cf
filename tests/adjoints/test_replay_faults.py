"""Losses and batches that do not repeat, under the strategies that keep plain floats: an error that names the step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import batch_indices, problem
from small_task import STEPS, Task

import reversible_hypergrad as rh

STRATEGIES = {
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "tree": rh.RecursiveCheckpoint(),
    "slots": rh.RecursiveCheckpoint(slots=3),
    "truncated": rh.Truncated(10),
}
OTHERS = {
    "reversible": rh.Reversible(),
    "unroll": rh.Unroll(),
    "forward mode": rh.ForwardMode(),
    "DrMAD": rh.DrMAD(),
    "Neumann": rh.Neumann(3),
    "conjugate gradient": rh.ConjugateGradient(3),
}


@pytest.fixture(params=STRATEGIES)
def adjoint(request):
    return STRATEGIES[request.param]


@pytest.fixture
def task():
    return Task()


def first_step(adjoint):
    """The earliest one that is walked back through."""
    return STEPS - 10 if isinstance(adjoint, rh.Truncated) else 0


def check_refused(task, trained, message):
    state = torch.get_rng_state()
    # A second try trains once more, and notices that it went another way.
    for expected in (message, "training once more, for a second backward, did not end at the same weights: the loss of step"):
        with pytest.raises(rh.ReversalError, match=expected):
            sum(w.square().sum() for w in trained.values()).backward(retain_graph=True)
        task.check_untouched()
    assert torch.equal(torch.get_rng_state(), state)
    assert not trained.report.restored


def test_unseeded_randomness(task, adjoint):
    own = torch.Generator()
    own.seed()

    def loss(model, batch, hyperparameters):
        return task.loss(model, (batch[0] + 0.1 * torch.randn(batch[0].shape, generator=own), batch[1]), hyperparameters)

    trained = task.train(loss=loss, adjoint=adjoint)
    step = first_step(adjoint)
    check_refused(task, trained, rf"step {step}: its loss was .*gradient at step {step} is another one at each call.*unseeded")


def test_randomness_in_one_step_only(task, adjoint):
    """The step is named, not the first one."""
    own = torch.Generator()
    own.seed()

    def batch(step):
        x, y = task.batch(step)
        return (x + torch.randn(x.shape, generator=own) if step == 55 else x), y

    # Where step 55 is trained again, later weights differ as well; no earlier ones do.
    trained = task.train(batch=batch, adjoint=adjoint)
    check_refused(task, trained, r"step 55: its loss was .*the batch of step 55 is another one each time")


def test_a_counter_in_the_loss(task, adjoint):
    class Counter(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * (1 + 1e-4 * self.calls)

    task.model.append(Counter())
    trained = task.train(adjoint=adjoint)
    check_refused(task, trained, rf"step {first_step(adjoint)}: its loss was .*counts its calls")


def test_running_statistics_in_the_loss(adjoint):
    """What batch norm gathers is in order of training; a loss that looks at it cannot be replayed."""
    model, x, y = problem("convolution and batch norm", torch.float32)

    def loss(model, index, hyperparameters):
        value = F.cross_entropy(model(x[index]), y[index])
        return value + sum(b.square().sum() for n, b in model.named_buffers() if n.endswith("mean"))

    trained = rh.train(model, loss, batch_indices, steps=20, optimizer=rh.SGD(0.1), adjoint=adjoint)
    with pytest.raises(rh.ReversalError, match=r"step \d+: its loss was"):
        sum(w.sum() for w in trained.values()).backward()
    assert all(p.grad is None for p in model.parameters())


def test_batches_that_differ(task, adjoint):
    calls = []

    def batch(step):
        calls.append(step)
        return task.x[step] + 1e-4 * len(calls), task.y[step]

    trained = task.train(batch=batch, adjoint=adjoint)
    step = first_step(adjoint)
    check_refused(task, trained, rf"step {step}: its loss was .*the batch of step {step} is another one each time")


def test_a_setting_changed_between_training_and_backward(task, adjoint):
    scale = [1.0]

    def loss(model, batch, hyperparameters):
        return scale[0] * task.loss(model, batch, hyperparameters)

    trained = task.train(loss=loss, adjoint=adjoint)
    scale[0] = 2.0
    with pytest.raises(rh.ReversalError, match="what changed did so between training and this backward"):
        task.backward(trained)
    task.check_untouched()


@pytest.mark.parametrize("name", [*STRATEGIES, *(name for name in OTHERS if name not in ("reversible", "forward mode"))])
def test_a_loss_that_changed_between_two_backwards(task, name):
    """Consistently, so that the second run agrees with itself, but not with the weights that went out."""
    scale = [1.0]

    def loss(model, batch, hyperparameters):
        return scale[0] * task.loss(model, batch, hyperparameters)

    task.model = torch.nn.Linear(4, 1)
    trained = task.train(loss=loss, adjoint={**STRATEGIES, **OTHERS}[name])
    downstream = sum(w.square().sum() for w in trained.values())
    downstream.backward(retain_graph=True)
    before = task.log_l2.grad.clone()
    scale[0] = 1.5
    first = first_step({**STRATEGIES, **OTHERS}[name])
    with pytest.raises(rh.ReversalError, match=f"did not end at the same weights: the loss of step {first} was"):
        downstream.backward(retain_graph=True)
    assert torch.equal(task.log_l2.grad, before)
    scale[0] = 1.0
    downstream.backward()
    assert torch.equal(task.log_l2.grad, 2 * before)


@pytest.mark.parametrize("name", [*STRATEGIES, *OTHERS])
@pytest.mark.parametrize("step", [0, 17, STEPS - 1])
def test_a_loss_that_is_not_a_number(task, name, step):
    """Named by its step, though plain floats look at losses only now and then."""

    def batch(at):
        x, y = task.batch(at)
        return x, y * (float("nan") if at == step else 1.0)

    state = torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=rf"step {step}: "):
        task.train(batch=batch, adjoint={**STRATEGIES, **OTHERS}[name])
    task.check_untouched()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_last_step_that_leaves_the_numbers(task, adjoint):
    """Its loss is finite, and no later one tells."""

    def loss(model, batch, hyperparameters):
        value = task.loss(model, batch[:2], hyperparameters)
        return value + (1e30 * model[0].bias.sum() * 1e30 - 1e30 * model[0].bias.sum().detach() * 1e30) if batch[2] else value

    def batch(step):
        return *task.batch(step), False

    def last(step):
        return *task.batch(step), step == STEPS - 1

    task.train(loss=loss, batch=batch, adjoint=adjoint)
    with pytest.raises(FloatingPointError, match=rf"step {STEPS - 1}: "):
        task.train(loss=loss, batch=last, adjoint=adjoint)
    task.check_untouched()


@pytest.mark.parametrize("at", ["training", "backward"])
def test_an_exception_in_the_loss(task, adjoint, at):
    calls = []
    limit = 5 if at == "training" else STEPS + 1 + 5

    def loss(model, batch, hyperparameters):
        calls.append(1)
        if len(calls) == limit:
            raise KeyError("lost")
        return task.loss(model, batch, hyperparameters)

    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="lost"):
        task.backward(task.train(loss=loss, adjoint=adjoint))
    assert torch.equal(torch.get_rng_state(), state)
    task.check_untouched()
    # And the same object serves another run.
    trained = task.train(adjoint=adjoint)
    task.backward(trained)
    assert trained.report.restored


@pytest.mark.parametrize("name", ["unroll", "forward mode"])
def test_strategies_that_evaluate_a_loss_once_need_no_replay(task, name):
    own = torch.Generator()
    own.seed()

    def loss(model, batch, hyperparameters):
        return task.loss(model, (batch[0] + 0.1 * torch.randn(batch[0].shape, generator=own), batch[1]), hyperparameters)

    task.backward(task.train(loss=loss, adjoint=OTHERS[name]))
    assert task.log_l2.grad.isfinite()
    assert task.log_l2.grad != 0
