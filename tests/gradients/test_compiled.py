"""train(compile=...): the same hypergradients as without, up to rounding, and a trajectory undone bit for bit all the same.

Most tests compile by aot_eager: what torch.compile does with a loss, without a compiler for kernels.
"""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from models import batch_indices, problem
from torch import nn
from torch._dynamo.utils import counters
from unroll import unroll

import reversible_hypergrad as rh

STEPS = 8
QUICK = {"backend": "aot_eager"}


def run(name="mlp", compile=QUICK, adjoint=None, optimizer=rh.SGD, batches=batch_indices, dtype=torch.float32, **settings):
    """Weights, buffers and gradients of a run by name, and its report."""
    model, x, y = problem(name, dtype)
    log_l2 = torch.tensor(-3.0, dtype=dtype, requires_grad=True)
    rate = torch.tensor(0.05, requires_grad=True)

    def loss(model, index, log_l2):
        penalty = sum(p.square().sum() for _, p in model.named_parameters())
        return F.cross_entropy(model(x[index]).float(), y[index]) + log_l2.exp() * penalty

    trained = rh.train(
        model,
        loss,
        batches,
        steps=STEPS,
        optimizer=optimizer(rate),
        hyperparameters=log_l2,
        adjoint=adjoint,
        seed=4,
        compile=compile,
        **settings,
    )
    found = torch.autograd.grad(sum((w * w.detach().cos()).sum() for w in trained.values()), [rate, log_l2])
    return [*(w.detach() for w in trained.values()), *trained.buffers.values(), *found], trained.report


def assert_close(mine, expected, tolerance):
    """Norms, since single elements may be sums of nothing but rounding."""
    assert len(mine) == len(expected)
    for a, b in zip(mine, expected, strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm(), (a, b)


# A float32 gradient is exact to some 1e-6 of its norm. Adam divides by roots, which are near 0 for some weights in its first
# steps, and that makes more of a difference there.
ROUNDING = {rh.SGD: 1e-5, rh.AdamW: 1e-4}
MODELS = ["mlp", "convolution and batch norm", "SiLU, Mish, group norm", "weight norm", "tied", "frozen", "unused parameters"]


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    mine, report = run(name)
    assert report.restored
    assert report.compile_seconds > 0
    assert_close(mine, run(name, compile=False)[0], ROUNDING[rh.SGD])


EXACT = [(adjoint, rule) for adjoint in (rh.Reversible(), rh.Snapshots(), rh.Checkpoint()) for rule in (rh.SGD, rh.AdamW)]


@pytest.mark.parametrize(("adjoint", "optimizer"), [*EXACT, (rh.Neumann(terms=4), rh.SGD)], ids=repr)
def test_strategies(adjoint, optimizer):
    """Neumann's, which is for SGD, asks for many products of one evaluation."""
    name = "convolution and batch norm"
    mine, report = run(name, adjoint=adjoint, optimizer=optimizer)
    assert report.restored or not report.exact
    assert_close(mine, run(name, compile=False, adjoint=adjoint, optimizer=optimizer)[0], ROUNDING[optimizer])


def test_against_an_unroll_in_float64():
    """The tolerance is that of tests/training for 64 bits."""
    model, x, y = problem("mlp", torch.float64)
    found = []
    for compiled in (True, False):
        log_l2 = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
        rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)

        def loss(model, index, log_l2):
            penalty = log_l2.exp() * sum(p.square().sum() for _, p in model.named_parameters())
            return F.cross_entropy(model(x[index]), y[index]) + penalty

        arguments = {"steps": STEPS, "hyperparameters": log_l2, "seed": 4}
        if compiled:
            trained = rh.train(
                model, loss, batch_indices, optimizer=rh.SGD(rate), adjoint=rh.Reversible(64), compile=QUICK, **arguments
            )
        else:
            trained = unroll(model, loss, batch_indices, lr=rate, **arguments)
        found.append(torch.autograd.grad(sum((w * w).sum() for w in trained.values()), [rate, log_l2]))
    assert_close(*found, 1e-9)


class Noisy(nn.Module):
    """Dropout, and a buffer that is written in place."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        h = self.drop(torch.tanh(self.a(x)))
        with torch.no_grad():
            self.seen.mul_(0.9).add_(h.mean(0))
        return self.b(h)


def noisy(compile, model=Noisy, loss=None, batches=None, **settings):
    torch.manual_seed(3)
    model, (x, y) = model(), problem("mlp", torch.float32)[1:]
    rate = torch.tensor(0.05, requires_grad=True)
    trained = rh.train(
        model,
        loss or (lambda model, i, _: F.cross_entropy(model(x[i]), y[i])),
        batches or batch_indices,
        steps=STEPS,
        optimizer=rh.SGD(rate),
        compile=compile,
        **settings,
    )
    (found,) = torch.autograd.grad(sum(w.square().sum() for w in trained.values()), [rate])
    return [*(w.detach() for w in trained.values()), *trained.buffers.values(), found], trained.report


def test_dropout_and_buffers():
    assert_close(noisy(QUICK)[0], noisy(False)[0], ROUNDING[rh.SGD])


def test_dropout_that_would_draw_otherwise_is_refused():
    """Of a tensor that is not contiguous: torch.compile draws in the order of the sizes, eager torch in that of memory."""
    with pytest.raises(
        RuntimeError, match=r"compile: at step 0 the compiled gradient is not .* draws other random numbers.*contig"
    ):
        run("transformer with dropout")


def ragged(step):
    return batch_indices(step)[: 12 - 5 * (step % 3 == 2)]


def test_two_shapes():
    mine, report = run(batches=ragged)
    assert report.restored
    assert_close(mine, run(batches=ragged, compile=False)[0], ROUNDING[rh.SGD])


def test_a_later_run_compiles_nothing_and_a_step_back_neither():
    run()
    before = counters["stats"]["unique_graphs"]
    run()
    assert counters["stats"]["unique_graphs"] == before > 0
    run(dtype=torch.float64)
    assert counters["stats"]["unique_graphs"] > before  # the count counts


@pytest.mark.parametrize(("optimizer", "graphs"), [(rh.SGD(0.1), 3), (rh.AdamW(0.1), 2)], ids=["SGD", "AdamW"])
def test_all_is_compiled_in_the_first_step(optimizer, graphs):
    """With SGD the directions are known before the gradient, and there is a function for both."""
    before = counters["stats"]["unique_graphs"]
    model = nn.Linear(3, graphs)  # of another shape, or it would be found again
    trained = rh.train(model, lambda m, x, _: m(x).square().mean(), torch.randn(6, 4, 3), optimizer=optimizer, compile=QUICK)
    assert counters["stats"]["unique_graphs"] == before + graphs
    sum(w.square().sum() for w in trained.values()).backward()
    assert counters["stats"]["unique_graphs"] == before + graphs


class Own(nn.Linear):
    pass


def test_no_copy_of_the_model_outlives_the_run():
    rh.train(Own(3, 1), lambda m, x, _: m(x).square().mean(), torch.randn(3, 4, 3), optimizer=rh.SGD(0.1), compile=QUICK)
    gc.collect()
    assert not [kept for kept in gc.get_objects() if type(kept) is Own]


def test_numbers_of_a_closure_may_change_from_run_to_run():
    """More often than torch compiles one function for."""
    x = torch.randn(2, 4, 3)
    with torch._dynamo.config.patch(recompile_limit=2):
        for number in (1.0, 2.0, 3.0, 4.0):

            def loss(model, x, _, number=number):
                return number * model(x).square().mean()

            rh.train(nn.Linear(3, 1), loss, x, optimizer=rh.SGD(0.1), compile=QUICK)


def test_captured_too(tapes):
    """One step, which a capture only warms up with: torch compiles nothing under the tape, so no more can be seen here."""
    x, found = torch.randn(1, 4, 3), []
    for graph in (True, False):
        torch.manual_seed(1)
        model, settings = nn.Linear(3, 1), {"adjoint": rh.Snapshots(), "compile": QUICK, "cuda_graph": graph}
        trained = rh.train(model, lambda m, x, _: m(x).square().mean(), x, optimizer=rh.SGD(0.1), **settings)
        found.append(torch.autograd.grad(sum(w.square().sum() for w in trained.values()), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert tapes[0].eager == 3


def test_the_planner_takes_one_that_can():
    assert run(adjoint="auto", budget="1 GB")[1].adjoint == repr(rh.Snapshots())


def test_by_inductor():
    """One small layer, since it takes seconds to compile a kernel."""
    x, found = torch.randn(5, 4, 3), []
    for compile in (True, False):
        torch.manual_seed(1)
        scale = torch.tensor(0.5, requires_grad=True)
        trained = rh.train(
            nn.Linear(3, 1),
            lambda model, x, scale: scale * model(x).square().mean(),
            x,
            optimizer=rh.SGD(0.1),
            hyperparameters=scale,
            compile=compile,
        )
        found.append(torch.autograd.grad(sum(w.square().sum() for w in trained.values()), [scale]))
        assert trained.report.restored
    assert_close(*found, ROUNDING[rh.SGD])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "convolution and batch norm", "SiLU, Mish, group norm"])
def test_models_by_inductor(name):
    mine, report = run(name, compile=True)
    assert report.restored
    assert_close(mine, run(name, compile=False)[0], ROUNDING[rh.SGD])


@pytest.mark.slow
def test_dropout_by_inductor():
    mine, report = noisy(True)
    assert report.restored
    assert_close(mine, noisy(False)[0], ROUNDING[rh.SGD])
