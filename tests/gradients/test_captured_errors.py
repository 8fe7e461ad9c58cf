"""What train(cuda_graph=True) refuses, with a tape in the place of CUDA graphs, and how it leaves things."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import batch_indices, problem
from small_task import STEPS, Task
from test_captured import run
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.gradients import graphs
from reversible_hypergrad.gradients.captured import captured
from reversible_hypergrad.gradients.loss import LossGradient

ELSEWHERE = torch.device("meta")


def train(loss=None, batches=None, model=None, steps=STEPS, **settings):
    task = Task()
    arguments = {"steps": steps, "optimizer": rh.SGD(lr=0.05), "hyperparameters": task.log_l2, "cuda_graph": True}
    return rh.train(model or task.model, loss or task.loss, batches or task.batch, **{**arguments, **settings})


@pytest.mark.parametrize("given", [1, None, "yes"])
def test_it_is_a_bool(given):
    with pytest.raises(TypeError, match=r"cuda_graph: expected True or False, got "):
        train(cuda_graph=given)


def test_weights_on_the_cpu():
    with pytest.raises(ValueError, match=r"cuda_graph: expected the model's weights on a CUDA device, got cpu. Move"):
        train()


def test_weights_on_two_devices():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device=ELSEWHERE))
    gradient = LossGradient(model, dict(zip("abcd", model.parameters(), strict=True)), None, None)
    with pytest.raises(ValueError, match=r"expected all of the model's weights on one CUDA device, got b on cpu, d on meta"):
        captured(gradient, None)


@pytest.mark.parametrize("adjoint", [rh.Unroll(), rh.ForwardMode()], ids=repr)
def test_strategies_that_cannot_be_captured(adjoint, tapes):
    with pytest.raises(ValueError, match=r"cuda_graph: (Unroll|ForwardMode).*which is not captured. Use rh.Reversible\(\)"):
        train(adjoint=adjoint)


def test_a_strategy_that_claims_too_much(tapes, monkeypatch):
    for adjoint, asked in ((rh.Unroll, "attached"), (rh.ForwardMode, "tangents")):
        monkeypatch.setattr(adjoint, "graphable", True)
        with pytest.raises(ValueError, match=rf"cuda_graph: expected .* got one that asks for {asked}\(\)"):
            train(adjoint=adjoint())


def test_the_planner_takes_one_that_can(tapes):
    assert train(adjoint="auto", budget="1 GB").report.adjoint == repr(rh.Snapshots())


def test_hyperparameters_elsewhere_are_named(tapes):
    away = torch.ones((), device=ELSEWHERE, requires_grad=True)
    with pytest.raises(ValueError, match=r"hyperparameters\['a'\]\[1\]: with cuda_graph=True expected .* on cpu.*got it on meta"):
        train(hyperparameters={"a": [torch.ones((), requires_grad=True), away]})


def test_batches_elsewhere_are_named(tapes):
    def batches(step):
        return {"x": torch.ones(3, device=ELSEWHERE if step == 5 else None)}

    with pytest.raises(ValueError, match=r"batches: step 5: .*on cpu.*got batch\['x'\] on meta.*Move them there"):
        train(loss=lambda model, batch, _: model[0].weight.square().sum() * batch["x"].sum(), batches=batches)


@dataclass
class Opaque:
    """A container that nobody has told torch about."""

    x: torch.Tensor


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (lambda step: step, "= 1, where it was 0"),
        (lambda step: step > 3, "= True, where it was False"),
        (lambda step: np.arange(step + 2), r"= array\(\[0, 1, 2\]\), where it was"),
        (lambda step: float("nan"), "= nan"),
        (lambda step: Opaque(torch.ones(2)), r"= .*Opaque"),
    ],
    ids=["number", "flag", "array", "nan", "object"],
)
def test_what_is_no_tensor_must_stay(item, shown, tapes):
    task = Task()

    def batches(step):
        return {"data": task.batch(step), "more": [None, item(step)]}

    with pytest.raises(ValueError, match=rf"batches: step \d: .*got batch\['more'\]\[1\] {shown}.*Pass it as a tensor"):
        train(loss=lambda model, batch, h: task.loss(model, batch["data"], h), batches=batches)
    task.check_untouched()


def test_too_many_shapes(tapes):
    task = Task()
    with pytest.raises(ValueError, match=r"batches: step 8: .*expected at most 8 shapes of batches.*Pad the batches"):
        train(batches=lambda step: tuple(t[: 8 - step] if step < 8 else t[:, :0] for t in task.batch(step)))


WAITING = {
    "item": lambda model, batch: model(batch[0]).square().mean() * (1 + 0 * batch[1].sum().item()),
    "branch": lambda model, batch: model(batch[0]).square().mean() * (1 if batch[1].sum() > -1e9 else 2),
    "mask": lambda model, batch: model(batch[0])[batch[1] > -1e9].square().mean(),
}


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint()], ids=repr)
@pytest.mark.parametrize("name", WAITING)
def test_a_loss_that_waits(name, adjoint, tapes):
    task = Task()
    states = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="cuda_graph: the loss or the model does something") as caught:
        train(loss=lambda model, batch, _: WAITING[name](model, batch), adjoint=adjoint)
    assert "operation not permitted" in str(caught.value.__cause__)
    task.check_untouched()
    assert torch.equal(torch.get_rng_state(), states)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_transformation_of_torch_func_in_the_loss(tapes):
    """Torch does not let it save tensors for what comes many steps later. functional_call and vmap may be there."""
    task = Task()

    def slope(model, batch, _):
        return torch.func.grad(lambda x: model(x).sum())(batch[0]).square().mean() + task.loss(model, batch, task.log_l2.detach())

    with pytest.raises(RuntimeError, match=r"a CUDA graph cannot hold.*Torch says: torch.func.*hooks"):
        train(loss=slope)

    def stacked(model, batch, _):
        weights = dict(model.named_parameters())
        outputs = torch.vmap(lambda x: torch.func.functional_call(model, weights, x))(batch[0])
        return F.mse_loss(outputs, batch[1])

    trained = train(loss=stacked)
    sum(w.square().sum() for w in trained.values()).backward()
    assert trained.report.restored


def test_what_the_message_says():
    text = graphs.cannot_be_captured(RuntimeError("CUDA error: not permitted\nmore lines"))
    assert text.startswith("cuda_graph: the loss or the model does something that a CUDA graph cannot hold")
    assert ".item()" in text
    assert text.endswith("Torch says: CUDA error: not permitted")


class Counting(nn.Module):
    """Its buffer is another tensor after each call, which a graph does not see."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.net(x)


def counted():
    calls = []

    def loss(model, batch, _):
        calls.append(1)
        return F.mse_loss(model(batch[0]), batch[1]) * len(calls) ** 0.5

    return loss


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Snapshots()], ids=repr)
@pytest.mark.parametrize(
    ("loss", "model"),
    [
        (lambda model, batch, _: F.mse_loss(model(batch[0]), batch[1]) * (1 + random.random()), None),
        (lambda model, batch, _: F.mse_loss(model(batch[0]), batch[1]) * (1 + np.random.rand()), None),  # noqa: NPY002
        (lambda model, batch, _: F.mse_loss(model(batch[0]), batch[1]), Counting),
    ],
    ids=["Python's random numbers", "NumPy's", "a buffer that is replaced"],
)
def test_what_a_graph_would_freeze(loss, model, adjoint, tapes):
    with pytest.raises(RuntimeError, match=r"cuda_graph: at step 2 the captured graph gave another loss, gradient or buffer"):
        train(loss=loss, model=model and model(), adjoint=adjoint)


def test_a_loss_that_is_not_the_same_twice_is_not_the_graphs_fault(tapes):
    """It differs from itself, as it may with a strategy that does not look back."""
    with torch.no_grad():
        train(loss=counted())


def test_a_branch_that_comes_later_is_not_taken(tapes):
    """What no comparison sees. It is frozen both ways, so the run is exact for what it did."""
    results = []
    for last in (True, False):
        task = Task()
        scale = [1.0]

        def batch(step, task=task, scale=scale, last=last):
            scale[0] = 2.0 if last and step > 10 else 1.0
            return task.batch(step)

        def loss(model, batch, h, task=task, scale=scale):
            return task.loss(model, batch, h) * scale[0]

        trained = train(loss, batch, task.model, hyperparameters=task.log_l2)
        task.backward(trained)
        results.append(task.log_l2.grad)
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["nan", "KeyError"])
def test_faults_of_a_run_come_through(kind, tapes):
    task = Task()

    def batch(step):
        if step == 17 and kind == "KeyError":
            raise KeyError("lost")
        return task.x[step], task.y[step] * (float("nan") if step == 17 else 1.0)

    with pytest.raises((FloatingPointError, KeyError), match=r"step 17: .*its gradient is not finite|lost"):
        train(batches=batch)
    task.check_untouched()
    assert not tapes[0].is_open


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint()], ids=repr)
def test_other_batches_on_the_way_back(adjoint, tapes):
    task = Task()
    calls = []

    def batch(step):
        calls.append(step)
        return task.x[step] + (0.01 * len(calls) if len(calls) > STEPS else 0), task.y[step]

    trained = train(batches=batch, adjoint=adjoint)
    with pytest.raises(rh.ReversalError, match=r"the batch of step \d+ is another one each time"):
        sum(w.square().sum() for w in trained.values()).backward()
    assert not tapes[0].is_open


def test_the_loss_is_checked_as_without(tapes):
    outside = torch.ones((), requires_grad=True)
    for loss, error, message in (
        (lambda m, b, h: m(b[0]), TypeError, "loss: expected it to return a scalar"),
        (lambda m, b, h: m(b[0]).mean().detach(), ValueError, "does not depend on the model's weights"),
        (lambda m, b, h: m(b[0]).mean() * outside, ValueError, "its gradient would be lost"),
    ):
        for adjoint in (rh.Reversible(), rh.Snapshots()):
            with pytest.raises(error, match=message):
                train(loss=loss, adjoint=adjoint)
    task = Task()
    with pytest.raises(ValueError, match="its gradient would be lost"):
        train(batches=lambda step: (task.x[step] * outside, task.y[step]))


def test_an_evaluation_is_over_with_the_next_one(tapes):
    model, x, y = problem("mlp", torch.float32)
    weights = list(model.parameters())

    def loss(model, i, _):
        return F.cross_entropy(model(x[i]), y[i])

    gradient = captured(LossGradient(model, dict(model.named_parameters()), loss, batch_indices), None)
    first = gradient(0)
    us = [torch.ones_like(w) for w in weights]
    first.products(us, keep=True)
    gradient(1)
    with pytest.raises(RuntimeError, match="products were asked of an evaluation after the next one"):
        first.products(us)


def test_runs_without_do_not_change(tapes):
    run()
    assert tapes == []
