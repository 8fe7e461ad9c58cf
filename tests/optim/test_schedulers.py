"""Every learning-rate scheduler of torch with every drop-in optimizer: trains as torch's own optimizer does, settings alike at
every step, and rewinds bit for bit with what the scheduler changed in between."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from drop_ins import DROP_INS, DropIn
from optim_problems import frozen, random_gradients, random_parameters, setting_gradients
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel

STEPS = 20
Maker = Callable[[torch.optim.Optimizer], Any]


def chained(o: torch.optim.Optimizer) -> Any:
    return lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.3, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o)


def sequential(o: torch.optim.Optimizer) -> Any:
    parts = [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.PolynomialLR(o, 30), lr_scheduler.ExponentialLR(o, 0.8)]
    return lr_scheduler.SequentialLR(o, parts, [5, 15])


def cyclic(o: torch.optim.Optimizer) -> Any:
    return lr_scheduler.CyclicLR(o, 0.001, 0.02, step_size_up=7, base_momentum=0.5, max_momentum=0.95, cycle_momentum=cycles(o))


def one_cycle(o: torch.optim.Optimizer) -> Any:
    momentum = {"base_momentum": 0.5, "max_momentum": 0.95} if cycles(o) else {"cycle_momentum": False}
    return lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=STEPS + 1, **momentum)


def cycles(o: torch.optim.Optimizer) -> bool:
    """Whether there is a momentum to cycle: not in torch's sense for SGD's trace, whose momentum must stay 0."""
    return "betas" in o.defaults or o.defaults.get("momentum", 0) > 0


SCHEDULERS: dict[str, Maker] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5 + 0.01 * step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9 if step % 3 else 1.1),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 4, 17], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=9),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2, factor=0.5, cooldown=1),
    "CyclicLR": cyclic,
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6),
    "OneCycleLR": one_cycle,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "SWALR": lambda o: SWALR(o, swa_lr=0.002, anneal_epochs=8),
}
NO_SCHEDULERS = {"LRScheduler", "_LRScheduler"}  # what they are derived from

by_drop_in = pytest.mark.parametrize("drop_in", DROP_INS.values(), ids=DROP_INS.keys())


def all_pairs() -> list[Any]:
    """Those without a compiled program take longer, and share what scheduling takes: most are slow tests."""
    few = ("SequentialLR", "ReduceLROnPlateau", "OneCycleLR")
    return [
        pytest.param(
            name,
            drop_in,
            id=f"{drop_in.name}-{name}",
            marks=() if drop_in.name in ("SGD", "Adam", "AdamW") or name in few else pytest.mark.slow,
        )
        for drop_in in DROP_INS.values()
        for name in SCHEDULERS
    ]


by_pair = pytest.mark.parametrize(("name", "drop_in"), all_pairs())


def test_all_of_torchs_schedulers_are_here() -> None:
    classes = {n for n, kind in inspect.getmembers(lr_scheduler, inspect.isclass) if issubclass(kind, lr_scheduler.LRScheduler)}
    assert classes - NO_SCHEDULERS <= set(SCHEDULERS)


def advance(scheduler: Any, step: int) -> None:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0 if step < 8 else 0.5 + 0.01 * (step % 4))
    else:
        scheduler.step()


def numbers(group: dict[str, Any]) -> dict[str, Any]:
    read = {key: group[key] for key in ("lr", "momentum", "betas") if key in group}
    return {key: tuple(map(float, v)) if key == "betas" else float(v) for key, v in read.items()}


class Run:
    """An optimizer of two groups, the second with a learning rate of its own, under a scheduler, with given gradients."""

    def __init__(self, make: Any, maker: Maker, lr: Any, **options: Any) -> None:
        self.parameters = random_parameters((9, 2), (3, 4), dtype=torch.float64)
        groups = [{"params": self.parameters[:1]}, {"params": self.parameters[1:], "lr": 0.004}]
        self.optimizer = make(groups, {"lr": lr, "weight_decay": 0.01, **options})
        self.scheduler = maker(self.optimizer)
        self.closures = [setting_gradients(self.parameters, random_gradients(self.parameters, t)) for t in range(STEPS)]

    def step(self, t: int) -> None:
        self.closures[t]()
        self.optimizer.step()
        advance(self.scheduler, t)


def ours(drop_in: DropIn, name: str, lr: Any = 0.01, **options: Any) -> Run:
    return Run(lambda p, s: drop_in.make(p, **drop_in.forced, **s), SCHEDULERS[name], lr, **options)


@by_pair
def test_trains_as_torchs_own(name: str, drop_in: DropIn) -> None:
    """Gradients do not depend on weights, so distances add up: 20 steps of rounding to quanta, 2^-40 of the first gradients'
    largest or less, in updates of at most some 0.1. Settings are the same numbers at every step."""
    mine, other = ours(drop_in, name), Run(drop_in.reference, SCHEDULERS[name], 0.01)
    seen = set()
    for t in range(STEPS):
        before = [numbers(group) for group in mine.optimizer.param_groups]
        assert before == [numbers(group) for group in other.optimizer.param_groups], f"step {t}"
        seen.add(str(before))
        mine.step(t)
        other.step(t)
    assert len(seen) > 1, "the scheduler did nothing"
    for p, q in zip(mine.parameters, other.parameters, strict=True):
        assert (p - q).abs().max() < 1e-9


@by_pair
def test_undone_with_what_the_scheduler_wrote(name: str, drop_in: DropIn) -> None:
    tensor_lr = (list(SCHEDULERS).index(name) + list(DROP_INS).index(drop_in.name)) % 2 == 0
    run = ours(drop_in, name, torch.tensor(0.01) if tensor_lr else 0.01)
    held, seen = run.optimizer.param_groups[0]["lr"], []
    for t in range(STEPS):
        seen.append(frozen(run.optimizer))
        run.step(t)
    for t in reversed(range(STEPS)):
        run.optimizer.step_back(run.closures[t])
        assert frozen(run.optimizer) == seen[t], f"at step {t}"
    if tensor_lr:
        assert run.optimizer.param_groups[0]["lr"] is held, "the tensor that the caller holds must stay the learning rate"


@by_drop_in
def test_averaged_model(drop_in: DropIn) -> None:
    """An average of the weights along the way, with the schedule made for it, is that of torch's optimizer's run."""
    averages = []
    for run in (ours(drop_in, "SWALR"), Run(drop_in.reference, SCHEDULERS["SWALR"], 0.01)):
        average = AveragedModel(torch.nn.ParameterList(run.parameters))
        for t in range(STEPS):
            run.step(t)
            average.update_parameters(torch.nn.ParameterList(run.parameters))
        averages.append([p.detach() for p in average.module])
    for p, q in zip(*averages, strict=True):
        assert (p - q).abs().max() < 1e-9


@by_drop_in
def test_a_scheduler_goes_on_with_a_loaded_state(drop_in: DropIn) -> None:
    """Optimizer and scheduler saved together in the middle, as torch's tutorials do."""
    whole, first = ours(drop_in, "OneCycleLR"), ours(drop_in, "OneCycleLR")
    for t in range(STEPS):
        whole.step(t)
    for t in range(10):
        first.step(t)
    second = ours(drop_in, "OneCycleLR")
    with torch.no_grad():
        for p, q in zip(second.parameters, first.parameters, strict=True):
            p.copy_(q)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.scheduler.load_state_dict(first.scheduler.state_dict())
    for t in range(10, STEPS):
        second.step(t)
    assert frozen(second.optimizer) == frozen(whole.optimizer)
    second.optimizer.rewind(reversed(second.closures))
    assert [p.tolist() for p in second.parameters] == [p.tolist() for p in random_parameters((9, 2), (3, 4), dtype=torch.float64)]


@functools.cache
def cycled() -> list[str]:
    return [name for name, drop_in in DROP_INS.items() if cycles(ours(drop_in, "StepLR").optimizer)]


def test_momenta_are_cycled() -> None:
    """Guards the tests above: for all but the trace, CyclicLR and OneCycleLR change momenta or first betas, too."""
    assert cycled() == [name for name in DROP_INS if name != "TracedSGD"]
    for name in cycled():
        for kind in ("CyclicLR", "OneCycleLR"):
            run = ours(DROP_INS[name], kind)
            group = run.optimizer.param_groups[0]
            before = numbers(group)
            run.step(0)
            after = numbers(group)
            assert before.get("momentum", before.get("betas")) != after.get("momentum", after.get("betas")), (name, kind)


def test_nesterovs_momentum_is_cycled() -> None:
    run = ours(DROP_INS["TracedSGD"], "OneCycleLR", momentum=0.9, nesterov=True)
    other = Run(DROP_INS["TracedSGD"].reference, SCHEDULERS["OneCycleLR"], 0.01, momentum=0.9, nesterov=True)
    start = frozen(run.optimizer)
    for t in range(STEPS):
        run.step(t)
        other.step(t)
        assert numbers(run.optimizer.param_groups[0]) == numbers(other.optimizer.param_groups[0])
    for p, q in zip(run.parameters, other.parameters, strict=True):
        assert (p - q).abs().max() < 1e-9
    run.optimizer.rewind(reversed(run.closures))
    assert frozen(run.optimizer) == start
