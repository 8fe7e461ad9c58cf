"""Steps undone with their adjoint on a GPU: the bits of the CPU's ops, without waiting, on any stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adjoint_problems import ADJOINT_CASES, ALSO_ASKEW, AdjointBucket, adjoints_of, assert_same_trace, journey, vectors_of
from core_problems import EACH_RULE, WIDTHS
from device_matrix import FAST, Case, state_of, steps_of
from gpu_machine import DEVICE, GPU, no_synchronisation  # noqa: F401
from loss_problems import LOSS_CASES, REFUSED, walk_back

import reversible_hypergrad as rh

pytestmark = GPU

LARGE = Case((512 * 1100 + 13, 70_001, 513, 9), ("float32", "bfloat16", "float16", "float32"), momentum=FAST, elements=(1,))


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
@EACH_RULE
@pytest.mark.parametrize("case", [*LOSS_CASES, "refused"])
def test_integers_that_have_moved_give_a_loss_the_same_bits(state_bits, rule, case):
    problem, refused = LOSS_CASES.get(case, REFUSED), case == "refused"
    mine = walk_back(problem, state_bits, rule, True, refused, device=DEVICE)
    assert_same_trace(mine, walk_back(problem, state_bits, rule, False, refused))


@WIDTHS
def test_every_run_gives_the_same_bits(state_bits):
    first = journey(LARGE, state_bits, on(DEVICE))
    for _ in range(3):
        assert_same_trace(journey(LARGE, state_bits, on(DEVICE)), first)


def one_step(case: Case, state_bits: int, device: str):
    rng = np.random.default_rng(4)
    x, states = state_of(case, state_bits, rng)
    (step,) = steps_of(case, state_bits, 1, rng)
    (adjoint,) = adjoints_of(case, [step], rng)
    bucket = AdjointBucket(x, states, list(case.dtypes), state_bits, "float32", vectors_of(case, "float32", rng), device=device)
    step.gradients = [g.to(device) for g in step.gradients]
    step.elements = [[None if e is None else e.to(device) for e in own] for own in step.elements]
    adjoint.products = [None if p is None else p.to(device) for p in adjoint.products]
    return bucket, step, bucket.step(step), adjoint


@WIDTHS
def test_on_a_stream_of_its_own(state_bits):
    """Work follows the stream that is current, behind what was queued there and before what comes."""
    expected, *given = one_step(LARGE, state_bits, "cpu")
    expected.undo_weights_adjoint(*given)
    expected.undo_states_adjoint(*given)
    mine, *given = one_step(LARGE, state_bits, DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        mine.undo_weights_adjoint(*given)
        mine.undo_states_adjoint(*given)
        copies = [t.clone() for t in [*mine.tensors(), *mine.adjoint()]]
    stream.synchronize()
    assert_same_trace([[t.cpu() for t in copies]], [[*expected.tensors(), *expected.adjoint()]])


@WIDTHS
def test_nothing_waits_for_the_gpu(state_bits, no_synchronisation):  # noqa: F811
    bucket, *given = one_step(LARGE, state_bits, DEVICE)
    first, second = bucket.weights_adjoint_arguments(*given), bucket.states_adjoint_arguments(*given)
    with no_synchronisation():
        bucket.ops.undo_weights_adjoint(*first)
        bucket.ops.undo_states_adjoint(*second)


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
