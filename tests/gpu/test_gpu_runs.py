"""train() on a GPU: nothing waits between two looks, and planes on the host have the bits of planes on the device."""

from __future__ import annotations

import growing_run
import pytest
import torch
import torch.nn.functional as F
from gpu_machine import DEVICE, GPU, no_synchronisation  # noqa: F401
from torch import nn

import reversible_hypergrad as rh
from bench.gpu import __main__ as bench
from reversible_hypergrad.reversible.lateness import LOOK_AT_FIRST
from reversible_hypergrad.storage.places import open_store

pytestmark = GPU

STEPS = 60


def run(adjoint, batch=None, bad=None):
    """Hypergradients of a learning rate per step and the initial weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5)).to(DEVICE)
    x, y = torch.randn(STEPS, 16, 20, device=DEVICE), torch.randint(5, (STEPS, 16), device=DEVICE)
    if bad is not None:
        x[bad] = torch.nan
    log_lr = torch.full((STEPS,), -3.0, requires_grad=True)
    trained = rh.train(
        model,
        lambda model, batch, _: F.cross_entropy(model(x[batch]), y[batch]),
        batch or (lambda step: step),
        steps=STEPS,
        optimizer=rh.SGD(lr=log_lr.exp(), momentum=0.9),
        adjoint=adjoint,
    )
    value = sum(w.square().sum() for w in trained.values())
    return torch.autograd.grad(value, [log_lr, *model.parameters()]), trained.report


@pytest.mark.parametrize("buffer", ["device", "host"])
@pytest.mark.parametrize("state_bits", [64, 32])
def test_steps_do_not_wait(state_bits, buffer, no_synchronisation):  # noqa: F811
    """Once the first steps have been looked at, and until step 50, and so on the way back, whatever waits raises."""
    seen = []

    def batch(step):
        # Before that, libraries are loaded and memory is page-locked.
        torch.cuda.set_sync_debug_mode("error" if LOOK_AT_FIRST <= step < 50 else "default")
        seen.append(step)
        return step

    _, report = run(rh.Reversible(state_bits, buffer=buffer), batch)
    assert report.restored
    assert len(seen) == 2 * STEPS


ADJOINTS = {
    "reversible": lambda place: rh.Reversible(buffer=place),
    "reversible 32": lambda place: rh.Reversible(32, buffer=place, verify_every=7),
    "segments": lambda place: rh.Reversible(buffer=place, segments=4),
    "snapshots": lambda place: rh.Snapshots(store=place),
    "checkpoint": lambda place: rh.Checkpoint(store=place),
    "tree": lambda place: rh.RecursiveCheckpoint(slots=3, store=place),
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_on_the_host_as_on_the_device(adjoint, tmp_path):
    (expected, _), *others = (run(ADJOINTS[adjoint](place)) for place in ("device", "host", tmp_path))
    for mine, _ in others:
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("segments", [1, 7])
def test_what_grows_gets_room_at_a_look(state_bits, segments):
    growing_run.check(state_bits, segments, DEVICE)


def test_a_step_that_is_not_finite_is_named_late():
    with pytest.raises(FloatingPointError, match=r"step 17: \S+: its gradient is not finite, or was many times larger"):
        run(rh.Reversible(), bad=17)


# Torch 2.10 to 2.14 have no deterministic backward of these.
WITHOUT_DETERMINISTIC_FORM = {
    "max_pool3d": lambda x: F.max_pool3d(x[None], (1, 2, 2)),
    "avg_pool3d": lambda x: F.avg_pool3d(x[None], (1, 2, 2)),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 4),
}


@pytest.mark.parametrize("name", WITHOUT_DETERMINISTIC_FORM)
def test_an_operation_without_deterministic_form_is_refused_with_the_reason(name):
    model = nn.Conv2d(1, 1, 3).to(DEVICE)

    def loss(model, batch, _):
        return WITHOUT_DETERMINISTIC_FORM[name](model(batch)).square().mean()

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=rf"no deterministic form on CUDA.*Torch says: {name}"):
        rh.train(model, loss, [torch.randn(2, 1, 8, 8, device=DEVICE)] * 3, optimizer=rh.SGD(lr=0.1))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_bench_runs_at_toy_size(tmp_path, capsys):
    assert bench.main(["--device", DEVICE, "--tiny", "--output", str(tmp_path / "toy.md")]) == 0


@pytest.mark.parametrize("count", [1, 40])
def test_planes_go_to_the_host_and_come_back(count):
    """With work that is still queued before the planes have their content, and memory that is used again at once."""
    store = open_store("host", torch.device(DEVICE, 0))
    expected = []
    for i in range(count):
        torch.cuda._sleep(2_000_000)
        plane = torch.full((100_000 + i,), i, dtype=torch.uint8, device=DEVICE)
        expected.append(i)
        store.push(plane)
        del plane
        torch.full((100_000 + i,), 255, dtype=torch.uint8, device=DEVICE)
        if i % 5 == 4:
            assert bool((store.top() == i).all())
            for _ in range(3):
                plane = store.pop()
                assert bool((plane == expected.pop()).all())
    while expected:
        i = expected.pop()
        plane = store.pop()
        torch.cuda._sleep(1_000_000)
        assert plane.is_cuda
        assert bool((plane == i).all())
    assert store.nbytes == 0
    store.close()


def test_planes_come_and_go_without_waiting(no_synchronisation):  # noqa: F811
    store = open_store("host", torch.device(DEVICE, 0))
    planes = [torch.full((1000,), i, dtype=torch.uint8, device=DEVICE) for i in range(20)]
    with no_synchronisation():
        for plane in planes:
            store.push(plane)
        back = [store.pop() for _ in planes]
    assert all(torch.equal(a, b) for a, b in zip(back, reversed(planes), strict=True))
