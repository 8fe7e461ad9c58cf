"""Learning-rate schedulers, tensor learning rates, gradient clipping and loss scaling, next to torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import digits_batch, frozen, mlp, random_parameters, setting_gradients
from precision_problems import SCALES, check_loss_scaling
from test_sgd_trajectory import Twins
from torch.nn import functional as F
from torch.optim import lr_scheduler

import reversible_hypergrad as rh

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=40),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.3, step_size_up=7, base_momentum=0.5, max_momentum=0.95),
    "step": lambda o: lr_scheduler.StepLR(o, 5, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "cosine-restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5 + 0.01 * step),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.PolynomialLR(o, 30)], [5]
    ),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float-lr", "tensor-lr"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_scheduler(make: Callable[[torch.optim.Optimizer], Any], tensor_lr: bool) -> None:
    twins = Twins((9,), (3, 2), lr=0.1, momentum=0.9, weight_decay=0.01)
    twins.add_group((4,), momentum=0.75)
    if tensor_lr:
        for group in twins.ours.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    schedulers = [make(twins.ours), make(twins.theirs)]
    lrs, momenta = set(), set()
    for _ in range(39):
        twins.step()
        for scheduler in schedulers:
            scheduler.step()
        for ours, theirs in zip(twins.ours.param_groups, twins.theirs.param_groups, strict=True):
            assert float(ours["lr"]) == theirs["lr"]
            assert ours["momentum"] == theirs["momentum"]
            lrs.add(theirs["lr"])
            momenta.add(theirs["momentum"])
    assert len(lrs) > 3, "the scheduler did nothing"


@pytest.mark.parametrize("name", ["one-cycle", "cyclic", "cosine"])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float-lr", "tensor-lr"])
def test_undoing_restores_what_the_scheduler_wrote(name: str, tensor_lr: bool) -> None:
    parameters = random_parameters((9,), (3, 2))
    lr = torch.tensor(0.1) if tensor_lr else 0.1
    optimizer = rh.ReversibleSGD(parameters, lr=lr, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    held = optimizer.param_groups[0]["lr"]
    seen, closures = [], []
    for step in range(30):
        gradients = [torch.full_like(p, 0.1 * step - 1) for p in parameters]
        closures.append(setting_gradients(parameters, gradients))
        seen.append(frozen(optimizer))
        optimizer.step(closures[-1])
        scheduler.step()
    for step in reversed(range(30)):
        optimizer.step_back(closures[step])
        assert frozen(optimizer) == seen[step], f"at step {step}"
    if tensor_lr:
        assert optimizer.param_groups[0]["lr"] is held, "the tensor that the caller holds must stay the learning rate"


def test_reduce_on_plateau() -> None:
    twins = Twins((9,), lr=0.1, momentum=0.9)
    schedulers = [lr_scheduler.ReduceLROnPlateau(o, patience=1) for o in (twins.ours, twins.theirs)]
    for _ in range(10):
        twins.step()
        for scheduler in schedulers:
            scheduler.step(1.0)
    assert twins.ours.param_groups[0]["lr"] == twins.theirs.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_clipped_gradients_are_undone_by_the_same_clipping(kind: str) -> None:
    model = mlp()
    optimizer = rh.ReversibleSGD(model.parameters(), lr=0.5, momentum=0.9)

    def closure_of(step: int) -> Callable[[], Any]:
        def closure() -> Any:
            optimizer.zero_grad()
            images, labels = digits_batch(step)
            loss = 100 * F.cross_entropy(model(images), labels)
            loss.backward()
            if kind == "norm":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            else:
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
            return loss

        return closure

    start = frozen(optimizer)
    for step in range(50):
        optimizer.step(closure_of(step))
    optimizer.rewind([closure_of(step) for step in reversed(range(50))])
    assert frozen(optimizer) == start


@pytest.mark.parametrize("dtype", SCALES, ids=str)
def test_loss_scaling_under_autocast(dtype: torch.dtype) -> None:
    check_loss_scaling(dtype, "cpu", frozen)
