"""Batches by step, pinned settings, seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reversible_hypergrad as rh
from reversible_hypergrad.replay.batches import batches_by_step
from reversible_hypergrad.replay.environment import Environment, seed_step


def test_batches_of_every_accepted_kind():
    assert batches_by_step([5, 6, 7], None)[1] == range(3)
    assert batches_by_step([5, 6, 7], None, 1)[1] == range(1, 3)
    assert batches_by_step(torch.arange(4), 2)[0](1) == 1
    assert batches_by_step(lambda step: step * 2, 9)[0](4) == 8
    loader = rh.ReplayableLoader(range(10), 4)
    assert batches_by_step(loader, None)[1] == range(3)
    assert batches_by_step(loader, 100)[1] == range(100)
    assert batches_by_step(loader, 100, 7)[1] == range(7, 107)


@pytest.mark.parametrize(
    ("batches", "steps", "error", "message"),
    [
        (iter([1, 2]), 2, TypeError, "consumed by the forward run.*ReplayableLoader"),
        ((x for x in [1]), None, TypeError, "got an iterator"),
        (DataLoader(TensorDataset(torch.ones(4, 1))), None, TypeError, "in place of a DataLoader"),
        ({0: 1}, None, TypeError, "expected a sequence"),
        ([1, 2], 3, ValueError, r"at most 2.*step % len\(batches\)"),
        (lambda step: step, None, ValueError, "has no length"),
        ([1], True, TypeError, "steps: expected an integer >= 0 or None, got True"),
        ([1], -1, ValueError, "steps: expected an integer >= 0 or None, got -1"),
    ],
)
def test_other_batches_are_refused_with_the_reason(batches, steps, error, message):
    with pytest.raises(error, match=message):
        batches_by_step(batches, steps)


def test_loader_covers_every_epoch_once_in_another_order():
    loader = rh.ReplayableLoader(range(50), batch_size=8, seed=2)
    epochs = [torch.cat([loader(step) for step in range(e * 7, e * 7 + 7)]) for e in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(50)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(torch.cat(list(loader)), epochs[0])


@pytest.mark.parametrize("prefetch", [0, 3])
def test_loader_is_the_same_forwards_and_backwards(prefetch):
    data = TensorDataset(torch.arange(20.0), torch.arange(20))

    def augment(batch, generator):
        return batch[0] + torch.rand(batch[0].shape, generator=generator), batch[1]

    loader = rh.ReplayableLoader(data, 6, 1, augment=augment, prefetch=prefetch, drop_last=True, pin_memory=True)
    forwards = [loader(step) for step in range(12)]
    backwards = [loader(step) for step in reversed(range(12))][::-1]
    assert len(loader) == 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(forwards, backwards, strict=True))


def test_loader_without_shuffle_and_with_collate():
    loader = rh.ReplayableLoader("abcde", 2, collate_fn="".join, shuffle=False)
    assert list(loader) == ["ab", "cd", "e"]
    assert loader[3] == "ab"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rh.ReplayableLoader(iter([1]), 1), TypeError, "dataset: expected one with len"),
        (lambda: rh.ReplayableLoader([1], 0), ValueError, "batch_size: expected an integer >= 1"),
        (lambda: rh.ReplayableLoader([1], 2, drop_last=True), ValueError, "Lower batch_size"),
        (lambda: rh.ReplayableLoader([1], 1, prefetch=0.5), TypeError, "prefetch: expected an integer >= 0"),
        (lambda: rh.ReplayableLoader([1], 1)(-1), IndexError, "step: expected"),
        (lambda: rh.ReplayableLoader([1], 1)("0"), TypeError, "step: expected an integer, got '0'"),
    ],
)
def test_loader_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Noisy(torch.utils.data.Dataset):
    """Augments by all three global generators."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.full((3,), float(i)) + torch.rand(3) + np.random.rand() + random.random()  # noqa: NPY002


def test_augmentation_by_global_generators_replays_inside_a_run():
    model = nn.Linear(3, 1)
    loader = rh.ReplayableLoader(Noisy(), 4)
    loss = lambda model, batch, h: model(batch / 10).square().mean()  # noqa: E731
    trained = rh.train(model, loss, loader, steps=10, optimizer=rh.SGD(lr=0.1))
    trained["weight"].sum().backward()
    assert trained.report.restored


def test_seeds_differ_by_step_and_by_seed():
    def draws(seed, step):
        seed_step(seed, step)
        return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002

    with Environment.current().pinned():
        assert draws(0, 1) == draws(0, 1)
        assert len({draws(seed, step) for seed in (-1, 0, 1, 2**63) for step in range(5)}) == 20


def test_settings_are_pinned_and_put_back(set_num_threads):
    set_num_threads(2)
    environment = Environment.current()
    set_num_threads(1)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with environment.pinned():
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        torch.rand(5)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.equal(torch.rand(2), expected)
