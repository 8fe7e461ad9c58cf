"""Steps undone with their adjoint on a GPU: the bits of the CPU's ops, without waiting, on any stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adjoint_problems import ADJOINT_CASES, ALSO_ASKEW, AdjointBucket, assert_same_trace, journey, throughs_of, vectors_of
from core_problems import WIDTHS
from device_matrix import Case, state_of, steps_of
from gpu_machine import DEVICE, GPU, no_synchronisation  # noqa: F401

import reversible_hypergrad as rh

pytestmark = GPU

LARGE = Case((512 * 1100 + 13, 70_001, 513, 9), ("float32", "bfloat16", "float16", "float32"), momentum="1/max", rates=(1,))


def on(device: str, **options):
    return lambda *problem: AdjointBucket(*problem, device=device, **options)


@WIDTHS
@pytest.mark.parametrize("askew", [frozenset(), ALSO_ASKEW], ids=["aligned", "askew"])
@pytest.mark.parametrize("case", [*ADJOINT_CASES, "large"])
def test_steps_back_have_the_same_bits(state_bits, askew, case):
    problem = ADJOINT_CASES.get(case, LARGE)
    expected = journey(problem, state_bits, on("cpu", askew=askew))
    assert_same_trace(journey(problem, state_bits, on(DEVICE, askew=askew)), expected)


@WIDTHS
def test_every_run_gives_the_same_bits(state_bits):
    first = journey(LARGE, state_bits, on(DEVICE))
    for _ in range(3):
        assert_same_trace(journey(LARGE, state_bits, on(DEVICE)), first)


def one_step(case: Case, state_bits: int, device: str):
    rng = np.random.default_rng(4)
    x, v = state_of(case, state_bits, rng)
    (step,) = steps_of(case, state_bits, 1, rng)
    through = throughs_of(case, [step], rng)[0]
    bucket = AdjointBucket(x, v, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng), device=device)
    step.gradients = [g.to(device) for g in step.gradients]
    step.rates = [None if r is None else r.to(device) for r in step.rates]
    through.products = [None if p is None else p.to(device) for p in through.products]
    return bucket, step, bucket.step(step), through


@WIDTHS
def test_on_a_stream_of_its_own(state_bits):
    """Work follows the stream that is current, behind what was queued there and before what comes."""
    expected, step, tape, through = one_step(LARGE, state_bits, "cpu")
    expected.undo_weights(step, through)
    expected.undo_velocity_too(step, tape, through)
    mine, step, tape, through = one_step(LARGE, state_bits, DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        mine.undo_weights(step, through)
        mine.undo_velocity_too(step, tape, through)
        copies = [t.clone() for t in [*mine.tensors(), *mine.adjoint()]]
    stream.synchronize()
    assert_same_trace([[t.cpu() for t in copies]], [[*expected.tensors(), *expected.adjoint()]])


@WIDTHS
def test_nothing_waits_for_the_gpu(state_bits, no_synchronisation):  # noqa: F811
    bucket, step, tape, through = one_step(LARGE, state_bits, DEVICE)
    bucket.undo_weights(step, through)  # the guarded vectors below are made before, too
    bucket.move(step, back=False)
    sums = [torch.zeros(n * len(bucket.sizes), dtype=torch.float64, device=DEVICE) for n in (1, 3)]
    none = torch.empty(0, device=DEVICE)
    products = [none if p is None else p for p in through.products]
    _, active, flat = bucket._shared(step)
    rates = bucket._rates(step)
    rates = [none.to(r.dtype) if r.numel() == 0 else r for r in rates]
    state = bucket.x, bucket.v, bucket.s
    head = bucket.weights, step.gradients, active, *state
    tail = [n for row in through.settings for n in row], [True] * 3, bucket.partials, sums[1]
    with no_synchronisation():
        ops = bucket.ops
        vectors = bucket.aw, bucket.av
        ops.sgd_undo_weights_adjoint(
            bucket.weights, active, *state, flat, True, bucket.outcome, rates, *vectors, bucket.partials, sums[0]
        )
        spill_bits, planes = tape
        rest = planes, spill_bits, flat, step.n, step.d, bucket.skipped, True, bucket.outcome
        ops.sgd_undo_velocity_adjoint(*head, *rest, *vectors, products, *tail)


@pytest.mark.parametrize("state_bits", [64, 32])
def test_hypergradients_of_all_settings_agree_with_the_cpu(state_bits):
    """Of a loss that is elementwise but for sums."""
    found = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(torch.randn(3000).to(device))
        settings = {
            "lr": torch.full((70,), 0.05, requires_grad=True),
            "momentum": torch.tensor(0.9, requires_grad=True),
            "dampening": torch.tensor(0.125, requires_grad=True),
            "weight_decay": torch.tensor(0.25, requires_grad=True),
        }
        batches = torch.randint(-2, 3, (70, 3000)).float().to(device)
        trained = rh.train(
            model,
            lambda model, batch, _: (model.w * batch).sum() + 0.5 * model.w.square().sum(),
            lambda step, batches=batches: batches[step],
            steps=70,
            optimizer=rh.SGD(**settings),
            adjoint=rh.Reversible(state_bits=state_bits),
        )
        found.append(torch.autograd.grad(trained["w"].square().sum(), list(settings.values())))
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=0)
