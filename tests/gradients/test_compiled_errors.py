"""What train(compile=...) refuses, and how it says so."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from small_task import Task
from test_compiled import QUICK, Noisy, noisy, run
from torch import nn

import reversible_hypergrad as rh


def train(loss=None, batches=None, model=None, steps=12, compile=QUICK, **settings):
    task = Task(width=8)
    arguments = {"optimizer": rh.SGD(lr=0.05), "hyperparameters": task.log_l2, "compile": compile}
    return rh.train(
        task.model if model is None else model, loss or task.loss, batches or task.batch, steps=steps, **{**arguments, **settings}
    )


@pytest.mark.parametrize("given", [1, None, "inductor"])
def test_it_is_a_bool_or_a_dict(given):
    with pytest.raises(TypeError, match=r"compile: expected True, False, or a dict of torch.compile's arguments .*, got "):
        train(compile=given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fullgraph": False}, r"expected only .*got 'fullgraph': a loss is always compiled as one whole"),
        ({"quick": 1}, r"expected only backend, mode, options, dynamic .* got 'quick': leave it out"),
        ({"backend": "none such"}, r"expected arguments that torch.compile takes, got .*Torch says: .*none such"),
        ({"mode": "none such"}, r"expected arguments that torch.compile takes, got .*Torch says: .*none such"),
        ({"options": {"none_such": 1}}, r"expected arguments that torch.compile takes, got .*Torch says: .*none_such"),
    ],
)
def test_arguments_that_torch_does_not_take(given, said):
    with pytest.raises(ValueError, match=rf"compile: {said}"):
        train(compile=given)


@pytest.mark.parametrize("adjoint", [rh.Unroll(), rh.ForwardMode()], ids=repr)
def test_strategies_that_cannot_be_compiled(adjoint):
    with pytest.raises(ValueError, match=r"compile: (Unroll|ForwardMode).*which is not compiled. Use rh.Reversible\(\)"):
        train(adjoint=adjoint)


def test_a_strategy_that_claims_too_much(monkeypatch):
    for adjoint, asked in ((rh.Unroll, "attached"), (rh.ForwardMode, "tangents")):
        monkeypatch.setattr(adjoint, "graphable", True)
        with pytest.raises(ValueError, match=rf"compile: expected .* got one that asks for {asked}\(\)"):
            train(adjoint=adjoint())


@pytest.mark.parametrize("compile", [False, QUICK], ids=repr)
def test_models_and_losses_that_are_compiled_already(compile):
    inner = nn.Linear(4, 1)
    with pytest.raises(TypeError, match=r"model: got a module compiled .* model._orig_mod, and rh.train\(\.\.\., compile=True\)"):
        train(model=torch.compile(inner), compile=compile)
    with pytest.raises(
        TypeError, match=r"model.0: got a module compiled by torch.compile.* Pass what it wraps, model.0._orig_mod"
    ):
        train(model=nn.Sequential(torch.compile(inner)), compile=compile)
    with pytest.raises(TypeError, match=r"loss: got a function compiled by torch.compile.* Pass the plain function"):
        train(loss=torch.compile(Task().loss), compile=compile)


class Waiting(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum().item() > -1e9 else x


def test_a_graph_break_is_named():
    model = nn.Sequential(nn.Linear(4, 1), Waiting())
    with pytest.raises(
        RuntimeError, match=r"compile: torch.compile refuses '1' \(Waiting\) at .*test_compiled_errors.py:.*leave"
    ):
        train(model=model)
    with pytest.raises(RuntimeError, match=r"compile: torch.compile refuses the loss function at .*test_compiled_errors.py:"):
        train(loss=lambda model, batch, _: model(batch[0]).square().mean() * (1.0 if batch[1].sum().item() > -1e9 else 2.0))


def test_a_module_that_is_refused_as_a_whole_is_named():
    with pytest.raises(RuntimeError, match=r"compile: torch.compile refuses 'recurrent' \(LSTM\)\. Torch says"):
        run("LSTM")


@pytest.mark.parametrize(("draw", "step"), [(random.random, 1), (np.random.rand, 0)])
def test_random_numbers_of_python_and_numpy(draw, step):
    """Torch draws NumPy's numbers by itself, which are others from the first step on."""

    class Scale(nn.Module):
        def forward(self, x):
            return x * self.draw()

        @torch.compiler.assume_constant_result
        def draw(self):
            return float(draw())

    model = nn.Sequential(nn.Linear(4, 1), Scale())
    with pytest.raises(RuntimeError, match=rf"compile: at step {step} the compiled .*draws from Python's or NumPy's generator"):
        train(model=model)


def test_what_changes_from_step_to_step():
    state = {"step": 0}
    task = Task(width=8)

    def batches(step):
        state["step"] = step
        return task.batch(step)

    said = r"compile: something that is not a tensor changes from step to step .*Torch says"
    with torch._dynamo.config.patch(recompile_limit=2), pytest.raises(RuntimeError, match=said):
        train(loss=lambda model, batch, _: model(batch[0]).square().mean() * (1 + state["step"]), batches=batches)


def test_batches_that_are_no_tensors():
    task = Task(width=8)
    with pytest.raises(
        ValueError, match=r"batches: step 1: with compile=True expected .*got batch\['i'\] = 1, where it was 0. Pass"
    ):
        train(loss=lambda model, batch, _: model(batch["x"][0]).square().mean(), batches=lambda i: {"x": task.batch(i), "i": i})


def test_too_many_shapes():
    with pytest.raises(ValueError, match=r"batches: step 8: with compile=True expected at most 8 shapes of batches"):
        train(
            loss=lambda model, x, _: model(x).square().mean(),
            batches=lambda step: torch.ones(step + 1, 4),
            compile={"backend": "eager"},
        )


class Replacing(Noisy):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        self.seen = 0.9 * self.seen + h.detach().mean(0)
        return self.b(h)


def test_a_buffer_that_is_replaced():
    with pytest.raises(RuntimeError, match=r"compile: at step 0 the compiled buffer is not .*Write buffers in place"):
        noisy(QUICK, model=Replacing)


def test_errors_of_the_loss_stay_what_they_are():
    def loss(model, batch, _):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        train(loss=loss)


def test_products_that_a_backend_has_wrong():
    """Its forward is right, and so are the gradients; its backward, which gives the products, is not."""
    from torch._dynamo.backends.common import aot_autograd

    def as_it_is(graph, inputs):
        return torch._dynamo.backends.debugging.boxed_nop(graph, inputs)

    def tripled(graph, inputs):
        inner = as_it_is(graph, inputs)

        def call(given):
            return [3 * x if isinstance(x, torch.Tensor) else x for x in inner(given)]

        call._boxed_call = True
        return call

    backend = aot_autograd(fw_compiler=as_it_is, bw_compiler=tripled)
    with pytest.raises(RuntimeError, match="compile: at step 0 the compiled products with second derivatives are not those"):
        train(compile={"backend": backend})
