"""Micro-batches: the mean of their gradients, in any order and grouping, undone bit for bit."""

from __future__ import annotations

import functools
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
import unrolled
from models import batch_indices, problem
from strategies import EXACT, RULES, STEPS, assert_agree, by_train, by_unroll, leaf
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.gradients.accumulated import Accumulated
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.replay.environment import seed_step

PARTS = 3


def cut(step, parts=PARTS):
    return list(batch_indices(step).chunk(parts))


def listed(step):
    return rh.MicroBatches(cut(step))


def assert_same(found, expected):
    assert all(torch.equal(w, expected.trained[n]) for n, w in found.trained.items())


@functools.cache
def expected(rule, name="mlp", clipped=False):
    limit = leaf(0.3) if clipped else None
    return by_unroll(rule, cut, limit, unrolled.by_norm if clipped else None, name=name)


@pytest.mark.parametrize("strategy", EXACT)
@pytest.mark.parametrize("rule", RULES)
def test_hypergradients(rule, strategy):
    found = by_train(rule, batch_indices, EXACT[strategy], accumulate=PARTS)
    assert_agree(found, expected(rule), strategy)
    assert_same(by_train(rule, listed, EXACT[strategy]), found)


@pytest.mark.parametrize("strategy", EXACT)
def test_clipped(strategy):
    """The mean is clipped, not its terms."""
    found = by_train("SGD", batch_indices, EXACT[strategy], leaf(0.3), rh.clip_norm, accumulate=PARTS)
    assert_agree(found, expected("SGD", clipped=True), strategy)
    assert bool(found.gradients[0] != 0)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("transformer with dropout", "reversible, 3 segments"),
        ("transformer with dropout", "tree"),
        ("transformer with dropout", "forward mode"),
        ("convolution and batch norm", "reversible"),
        ("convolution and batch norm", "checkpoint"),
        ("convolution and batch norm", "unroll"),
        ("unused parameters", "snapshots"),
        ("unused parameters", "unroll"),
    ],
)
def test_other_models(name, strategy):
    """Random numbers are those of (seed, step, place)."""
    found = by_train("SGD", batch_indices, EXACT[strategy], name=name, accumulate=PARTS)
    assert_agree(found, expected("SGD", name), strategy)


def grouped(order, sizes):
    """Six micro-batches of a step, in some order, and in groups of these sizes."""

    def batches(step):
        parts = cut(step, 6)
        ordered = iter([parts[i] for i in order])
        return rh.MicroBatches([rh.MicroBatches([next(ordered) for _ in range(size)]) for size in sizes])

    return batches


GROUPED = {
    "one by one": grouped([0, 1, 2, 3, 4, 5], [1] * 6),
    "backwards": grouped([5, 4, 3, 2, 1, 0], [1] * 6),
    "3 and 3": grouped([2, 5, 1, 0, 4, 3], [3, 3]),
    "2, 2 and 2": grouped([4, 1, 0, 3, 5, 2], [2, 2, 2]),
    "1 and 5": grouped([3, 0, 5, 2, 1, 4], [1, 5]),
    "6": grouped([1, 2, 0, 5, 3, 4], [6]),
}


@pytest.mark.parametrize(
    ("rule", "strategy"),
    [("SGD", "reversible, 3 segments"), ("AdamW", "reversible"), ("SGD", "checkpoint"), ("AdamW", "unroll")],
)
def test_any_order_and_grouping_gives_the_same_bits(rule, strategy):
    results = [by_train(rule, batches, EXACT[strategy], dtype=torch.float32, steps=5) for batches in GROUPED.values()]
    for other in results[1:]:
        assert_same(other, results[0])
        assert other.trained.report.restored


def test_attached_has_the_bits_of_the_mean():
    """With all graphs at once, too."""
    model, x, y = problem("unused parameters", torch.float32)
    names = dict(model.named_parameters())

    def loss(model, index, _):
        return F.cross_entropy(model(x[index]), y[index])

    gradient = Accumulated(LossGradient(model, names, loss, batch_indices), PARTS)
    for step in range(3):
        evaluation = gradient(step)
        value, gradients = gradient.attached(gradient.batch(step), gradient.weights)
        assert torch.equal(value, evaluation.value)
        for g, right in zip(gradients, evaluation.gradients, strict=True):
            assert (g is None and not right.any()) or (g.requires_grad and torch.equal(g, right))


def spiked(step, order=(0, 1, 2)):
    """The gradient of one micro-batch is a thousand times as large at step 4, a million times at step 6."""
    factors = {4: 1e3, 6: 1e6}
    parts = [(torch.full((), factors.get(step, 1.0) if i == 1 else 1.0), index) for i, index in enumerate(cut(step))]
    return rh.MicroBatches([parts[i] for i in order])


def spike_loss(name="mlp"):
    model, x, y = problem(name, torch.float32)
    return model, lambda model, batch, log_scale: batch[0] * log_scale.exp() * F.cross_entropy(model(x[batch[1]]), y[batch[1]])


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(("mlp", strategy) for strategy in EXACT),
        ("convolution and batch norm", "reversible"),
        ("convolution and batch norm", "tree"),
        ("transformer with dropout", "reversible, 3 segments"),
        ("transformer with dropout", "checkpoint"),
    ],
)
def test_a_spike_begins_its_step_again(name, strategy):
    model, loss = spike_loss(name)
    calls = []

    def counted(model, batch, log_scale):
        calls.append(batch)
        return loss(model, batch, log_scale)

    log_scale = leaf(0.0, torch.float32)
    trained = rh.train(
        model,
        counted,
        spiked,
        steps=STEPS,
        optimizer=rh.SGD(lr=0.1, momentum=0.9),
        hyperparameters=log_scale,
        adjoint=EXACT[strategy],
        clip=rh.clip_norm(0.5),
        check_derivatives=False,  # evaluates the loss, too
    )
    again = 0 if strategy == "unroll" else 3  # the first step, and the two spikes
    evaluations = PARTS * (STEPS + again)
    if strategy == "forward mode":
        evaluations += PARTS * STEPS  # its tangents
    assert len(calls) == evaluations
    if name == "convolution and batch norm":
        assert int(trained.buffers["1.num_batches_tracked"]) == PARTS * STEPS
    sum(w.square().sum() for w in trained.values()).backward()
    assert trained.report.restored
    assert bool(log_scale.grad.isfinite())


def test_a_spike_in_any_order():
    results = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        model, loss = spike_loss()
        batches = functools.partial(spiked, order=order)
        results.append(
            rh.train(model, loss, batches, steps=STEPS, optimizer=rh.SGD(lr=0.1), hyperparameters=leaf(0.0), clip=rh.clip_norm(1))
        )
    assert all(torch.equal(w, other[n]) for n, w in results[0].items() for other in results[1:])


def test_buffers_see_each_micro_batch_once():
    """As torch has it, one micro-batch after the other."""
    name = "convolution and batch norm"
    trained = by_train("SGD", listed, rh.Reversible(), name=name).trained
    model, x, y = problem(name, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        for index in cut(step):
            penalty = math.exp(-4.0) * sum(p.square().sum() for p in model.parameters())
            ((F.cross_entropy(model(x[index]), y[index]) + penalty) / PARTS).backward()
        optimizer.step()
    assert int(trained.buffers["1.num_batches_tracked"]) == PARTS * STEPS
    for n, buffer in model.named_buffers():
        torch.testing.assert_close(trained.buffers[n], buffer, rtol=1e-9, atol=0)


class Counting(nn.Module):
    """Its buffer, which the loss depends on, is another tensor after each call."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.net(x) * self.calls.cos()


def test_evaluated_again_with_the_buffers_of_before():
    """The loss depends on them, so the tangents, which evaluate each micro-batch again, would see another one."""
    _, x, y = problem("mlp", torch.float32)
    trained = rh.train(
        Counting(),
        lambda model, index, _: F.cross_entropy(model(x[index]), y[index]),
        listed,
        steps=1,
        optimizer=rh.SGD(lr=0.1),
        adjoint=rh.ForwardMode(),
        initial={"net.bias": leaf([0.0] * 3, torch.float32)},
    )
    assert float(trained.buffers["calls"]) == PARTS
    assert trained["net.bias"].grad_fn is not None


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Checkpoint(), rh.ForwardMode(limit=1000)])
def test_one_graph_at_a_time(adjoint):
    """What a micro-batch leaves behind is gone when the next one is evaluated, forth and back."""
    model, x, y = problem("mlp", torch.float32)
    outputs, seen = [], []

    def loss(model, index, scale):
        seen.append(sum(output() is not None for output in outputs))
        result = model(x[index])
        outputs.append(weakref.ref(result))  # which the graph of the next line holds
        return scale * F.cross_entropy(result.square(), y[index])

    scale = leaf(1.0, torch.float32)
    value = loss(model, batch_indices(0), scale)
    assert outputs[0]() is not None  # guards the counts below
    del value
    gc.disable()
    try:
        optimizer = rh.SGD(lr=0.1)
        arguments = {"optimizer": optimizer, "hyperparameters": scale, "adjoint": adjoint, "check_derivatives": False}
        trained = rh.train(model, loss, listed, steps=3, **arguments)
        trained["0.weight"].sum().backward()
    finally:
        gc.enable()
    assert len(seen) > 2 * 3 * PARTS
    assert max(seen[1:]) == 0


def test_as_many_as_there_are():
    """Their number and sizes may change from step to step, and one is as no list at all."""

    def batches(step):
        index = batch_indices(step)
        return index if step == 2 else rh.MicroBatches([index] if step == 3 else index.split(5))

    found = by_train("SGD", batches, rh.Reversible())
    right = by_unroll("SGD", lambda step: [batch_indices(step)] if step in (2, 3) else list(batch_indices(step).split(5)))
    assert_agree(found, right, "reversible")
    alone = by_train("SGD", lambda step: rh.MicroBatches([batch_indices(step)]), rh.Reversible())
    plain = by_train("SGD", batch_indices, rh.Reversible())
    assert_same(alone, plain)
    assert all(torch.equal(a, b) for a, b in zip(alone.gradients, plain.gradients, strict=True))


def test_nests_are_cut_and_what_is_no_tensor_goes_along():
    seen = []

    def loss(model, batch, _):
        seen.append((batch.pop("scale"), *(t.shape for t in batch["x"]), batch["y"].shape))  # its own dict
        return (model(batch["x"][0] + batch["x"][1]) - batch["y"]).square().mean()

    data = [{"x": (torch.randn(6, 3), torch.randn(6, 3)), "y": torch.randn(6, 1), "scale": 2.0} for _ in range(3)]
    trained = rh.train(nn.Linear(3, 1), loss, data, optimizer=rh.SGD(lr=0.1), accumulate=2)
    trained["weight"].sum().backward()
    assert trained.report.restored
    assert set(seen) == {(2.0, (3, 3), (3, 3), (3, 1))}


def test_seeds():
    """Part 0 has the numbers that a step has had ever since."""
    draws = []
    for arguments in ((3, 5), (3, 5, (), 0), (3, 5, (), 1), (3, 5, (), 2), (3, 6), (3, 6, (), 1)):
        seed_step(*arguments)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[1]
    assert len(set(draws)) == 5


@pytest.mark.parametrize(
    ("name", "adjoint"),
    [
        ("mlp", rh.Neumann(terms=4)),
        ("transformer with dropout", rh.Reversible(segments=2)),
        ("convolution and batch norm", rh.Checkpoint()),
    ],
)
def test_captured(name, adjoint, tapes):
    results = [
        by_train("SGD", batch_indices, adjoint, leaf(0.2), rh.clip_norm, name, torch.float32, accumulate=PARTS, cuda_graph=graph)
        for graph in (False, True)
    ]
    assert tapes[0].replays > PARTS * STEPS
    assert_same(*results)
    assert all(torch.equal(a, b) for a, b in zip(results[0].gradients, results[1].gradients, strict=True))


def test_second_backward():
    model, loss = spike_loss()
    scale = leaf(0.0)
    trained = rh.train(model, loss, spiked, steps=STEPS, optimizer=rh.SGD(lr=0.1), hyperparameters=scale, clip=rh.clip_norm(0.5))
    value = sum(w.square().sum() for w in trained.values())
    found = [torch.autograd.grad(value, scale, retain_graph=retain)[0] for retain in (True, False)]
    assert torch.equal(*found)
