"""train(cuda_graph=True) with a tape in the place of CUDA graphs: the same bits as without, forwards and backwards."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from models import MODELS, batch_indices, problem
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.gradients.captured import captured
from reversible_hypergrad.gradients.loss import LossGradient

STEPS = 14


def run(name="mlp", dtype=torch.float32, adjoint=None, batches=batch_indices, backward=1, loss=None, steps=STEPS, **settings):
    """Everything that comes out of a run: weights, buffers, and gradients of each backward."""
    model, x, y = problem(name, dtype)
    log_lr = torch.full((steps, 1), -2.5, requires_grad=True)
    log_l2 = torch.tensor(-5.0, dtype=dtype, requires_grad=True)

    def own_loss(model, index, log_l2):
        penalty = log_l2.exp() * sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(x[index]).float(), y[index]) + penalty

    trained = rh.train(
        model,
        loss or own_loss,
        batches,
        steps=steps,
        optimizer=rh.SGD(lr=log_lr.exp(), momentum=0.9, weight_decay=0.01),
        hyperparameters=log_l2,
        adjoint=adjoint,
        seed=4,
        **settings,
    )
    results = [*(w.detach().clone() for w in trained.values()), *trained.buffers.values()]
    value = sum((w * w.detach().cos()).sum() for w in trained.values())
    inputs = [log_lr, log_l2, *(p for p in model.parameters() if p.requires_grad)]
    for i in range(backward):
        found = torch.autograd.grad(value, inputs, retain_graph=i < backward - 1, allow_unused=True)
        results += [torch.zeros(()) if g is None else g for g in found]
    return results, trained.report


def assert_same_bits(mine, expected):
    assert len(mine) == len(expected)
    for a, b in zip(mine, expected, strict=True):
        assert torch.equal(a, b), (a, b)


def compare(**settings):
    expected, _ = run(**settings)
    mine, report = run(**settings, cuda_graph=True)
    assert_same_bits(mine, expected)
    return report


@pytest.mark.parametrize("name", MODELS)
def test_models(name, tapes):
    assert compare(name=name).restored
    (tape,) = tapes
    # The evaluation, and its products: the first ones of each run, and one replay of the evaluation is compared.
    assert (tape.captures, tape.eager) == (2, 3)
    assert tape.replays == (STEPS - 1) + STEPS + (STEPS - 1)


ADJOINTS = {
    "reversible 32": lambda: rh.Reversible(32),
    "segments": lambda: rh.Reversible(segments=3),
    "snapshots": rh.Snapshots,
    "checkpoint": rh.Checkpoint,
    "tree": lambda: rh.RecursiveCheckpoint(arity=2),
    "slots": lambda: rh.RecursiveCheckpoint(slots=3),
    "truncated": lambda: rh.Truncated(5),
    "DrMAD": rh.DrMAD,
    "Neumann": lambda: rh.Neumann(terms=6),
}


@pytest.mark.parametrize("name", ["transformer with dropout", "convolution and batch norm"])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_strategies(adjoint, name, tapes):
    compare(name=name, adjoint=ADJOINTS[adjoint]())
    assert tapes[0].replays > STEPS


@pytest.mark.parametrize("adjoint", [rh.ConjugateGradient(iterations=8, tolerance=0.0), rh.Neumann(terms=8)], ids=repr)
def test_many_products_of_one_evaluation(adjoint, tapes):
    """On a strictly convex problem. The evaluation is captured at the second product, and its buffers move once all the same."""
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))

    def ridge(model, index, log_l2):
        return (model[0](x[index]).square() - 1).mean().abs() + 30 * model[2].weight.square().sum() + model_norm(model, log_l2)

    def model_norm(model, log_l2):
        return sum((p - 0.1).square().sum() for p in model.parameters()) * (5 + log_l2.exp())

    compare(adjoint=adjoint, loss=ridge)
    (tape,) = tapes
    assert tape.captures == 3  # values, evaluation, products
    compare(name="convolution and batch norm", adjoint=rh.Neumann(terms=4))


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint()], ids=repr)
@pytest.mark.parametrize("name", ["mlp", "convolution and batch norm"])
def test_second_backward(adjoint, name, tapes):
    compare(name=name, adjoint=adjoint, backward=3)


def ragged(step):
    return batch_indices(step)[: 12 - 5 * (step % 3 == 2)]


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Snapshots(), rh.Checkpoint()], ids=repr)
def test_ragged_batches(adjoint, tapes):
    compare(name="transformer with dropout", adjoint=adjoint, batches=ragged)
    assert tapes[0].captures in (4, 6)


def test_a_shape_that_comes_once(tapes):
    """The last batch alone is smaller. It runs as it is, and is captured on the way back if it comes a second time."""
    compare(batches=lambda step: batch_indices(step)[: 12 if step < STEPS - 1 else 7])


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint()], ids=repr)
def test_few_steps(steps, adjoint, tapes):
    compare(steps=steps, adjoint=adjoint, backward=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype, tapes):
    compare(dtype=dtype)


def test_without_a_backward(tapes):
    with torch.no_grad():
        model, x, y = problem("convolution and batch norm", torch.float32)
        results = [
            rh.train(
                model,
                lambda model, i, _: F.cross_entropy(model(x[i]), y[i]),
                batch_indices,
                steps=STEPS,
                optimizer=rh.SGD(lr=0.1),
                cuda_graph=graph,
            )
            for graph in (False, True)
        ]
    for plain, graphed in ((r.items() for r in pair) for pair in (results, [r.buffers for r in results])):
        assert_same_bits([t for _, t in graphed], [t for _, t in plain])
    assert tapes[0].closes == 1  # nothing is kept for a way back that cannot come


def test_graphs_are_let_go_with_the_way_back(tapes, monkeypatch):
    run(cuda_graph=True)
    assert tapes[0].closes == 1


def test_batches_of_any_structure(tapes):
    """Expanded, strided, empty and scalar tensors, and what is no tensor but the same at each step."""
    model, x, y = problem("mlp", torch.float32)

    def batch(step):
        i = batch_indices(step)
        wide = torch.cat([x[i], x[i]], 1)
        scale = torch.tensor(1.0 + step % 2)
        tensors = {"x": wide[:, ::2], "expanded": scale.expand(3), "scale": scale, "empty": x[:0], "y": y[i]}
        return [tensors, None, ("mean", 0.5)]

    def loss(model, batch, _):
        tensors, nothing, (reduction, factor) = batch
        batch.clear()  # its containers are its own
        assert nothing is None
        assert tensors["x"].stride(1) == 2
        scale = tensors["scale"] * tensors["expanded"].sum() + tensors["empty"].sum()
        return factor * scale * F.cross_entropy(model(tensors["x"]), tensors["y"], reduction=reduction)

    results = []
    for graph in (False, True):
        model.zero_grad()
        trained = rh.train(model, loss, batch, steps=STEPS, optimizer=rh.SGD(lr=0.05), cuda_graph=graph)
        sum(w.square().sum() for w in trained.values()).backward()
        results.append([*(w.detach() for w in trained.values()), *(p.grad.clone() for p in model.parameters())])
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(inside, tapes):
    model, x, y = problem("mlp", torch.float32)

    def loss(model, i, _):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
            return F.cross_entropy(model(x[i]).float(), y[i])

    results = []
    for graph in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
            trained = rh.train(model, loss, batch_indices, steps=STEPS, optimizer=rh.SGD(lr=0.1), cuda_graph=graph)
        sum(w.square().sum() for w in trained.values()).backward()
        results.append([*(w.detach() for w in trained.values()), *(p.grad.clone() for p in model.parameters())])
    assert_same_bits(results[1], results[0])


def test_channels_last(tapes):
    model, x, y = problem("convolution and batch norm", torch.float32)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    results = []
    for graph in (False, True):
        model.zero_grad()
        trained = rh.train(
            model,
            lambda model, batch, _: F.cross_entropy(model(batch[0]), batch[1]),
            lambda step: (x[batch_indices(step)], y[batch_indices(step)]),
            steps=STEPS,
            optimizer=rh.SGD(lr=0.1),
            cuda_graph=graph,
        )
        sum(w.square().sum() for w in trained.values()).backward()
        results.append([*(w.detach() for w in trained.values()), *(p.grad.clone() for p in model.parameters())])
    assert_same_bits(results[1], results[0])


def test_a_loss_that_is_linear_in_the_weights(tapes):
    """There is no graph to capture products from."""
    model = nn.Linear(3, 1)
    data = torch.randn(STEPS, 4, 3)
    results = []
    for graph in (False, True):
        model.zero_grad()
        trained = rh.train(model, lambda model, x, _: model(x).mean(), data, optimizer=rh.SGD(lr=0.1), cuda_graph=graph)
        sum(w.square().sum() for w in trained.values()).backward()
        results.append([p.grad.clone() for p in model.parameters()])
    assert_same_bits(results[1], results[0])


def test_weights_that_a_strategy_moves_elsewhere(tapes):
    """A graph reads them where they were."""
    model, x, y = problem("mlp", torch.float32)
    weights = list(model.parameters())

    def loss(model, i, _):
        return F.cross_entropy(model(x[i]), y[i])

    inner = LossGradient(model, dict(model.named_parameters()), loss, batch_indices)
    gradient = captured(inner, None)
    for step in range(9):
        if step % 4 == 3:
            for weight in weights:
                weight.data = weight.data * 0.5
        expected = inner(step)
        mine = gradient(step)
        assert_same_bits(mine.gradients, expected.gradients)
        assert_same_bits(mine.products(weights)[0], expected.products(weights)[0])
    assert tapes[0].captures == 3 * 2


def test_nothing_stays_when_a_result_is_dropped(tapes):
    """By reference counts alone: a graph's memory must not wait for the garbage collector."""
    model, x, y = problem("mlp", torch.float32)
    gc.collect()
    gc.disable()
    try:
        trained = rh.train(
            model,
            lambda model, i, _: F.cross_entropy(model(x[i]), y[i]),
            batch_indices,
            steps=STEPS,
            optimizer=rh.SGD(lr=0.1),
            cuda_graph=True,
        )
        (tape,) = tapes
        kept = weakref.ref(tape)
        tapes.clear()
        del tape
        assert kept() is not None
        del trained
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint()], ids=repr)
@pytest.mark.parametrize("rule", [rh.SGD, rh.AdamW], ids=["SGD", "AdamW"])
def test_many_losses_and_runs_that_continue(rule, adjoint, tapes):
    """Products of one loss are not to be written over by those of the next."""

    def found(cuda_graph):
        model, x, y = problem("transformer with dropout", torch.float32)
        log_l2 = torch.tensor(-5.0, requires_grad=True)

        def loss(model, index, log_l2):
            return F.cross_entropy(model(x[index]), y[index]) + log_l2.exp() * sum(p.square().sum() for p in model.parameters())

        start, decay = None, torch.tensor(0.9, requires_grad=True)
        for _ in range(2):
            trained = rh.train(
                model,
                loss,
                batch_indices,
                steps=7,
                optimizer=rule(0.05),
                hyperparameters=log_l2,
                adjoint=adjoint,
                start=start,
                readouts={"average": rh.ExponentialAverage(decay)},
                cuda_graph=cuda_graph,
            )
            start = trained.state
        average = trained.readouts["average"]
        losses = [sum((k + 1) * w.square().sum() for w in (*trained.values(), *average.values())) for k in range(3)]
        return [g for own in rh.hypergradients(losses, [log_l2, decay, *model.parameters()]) for g in own]

    assert_same_bits(found(True), found(False))
