"""What a step and its undoing cost: queued as in rh.train, and in the optimizer, which takes a refused step back."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from bench.backward import BYTES as BYTES_BACK
from bench.backward import Backward
from bench.gpu.clock import Clock, quartiles
from bench.gpu.report import Deadline, Setup
from bench.optimizer_step import RACED, Raced
from bench.timing import ratio
from reversible_hypergrad.reversible.lateness import LOOK_AT_FIRST

__all__ = ["step_and_undo"]

Calls = dict[str, Callable[[], object]]

# Per weight, as there; of one of torch's optimizers and of ours.
BYTES = {"copy": 8}
for _raced in RACED.values():
    _theirs, _ours = _raced.theirs.__name__, _raced.ours.__name__
    BYTES |= {f"{_theirs}({how})": _raced.theirs_bytes for how in ("fused", "foreach")}
    BYTES |= {f"{_ours}({bits}).step": _raced.step[bits] for bits in (32, 64)}
    BYTES |= {f"{_ours}({bits}).step_back": _raced.undo[bits] for bits in (32, 64)}
BYTES |= {f"{move} {bits}": RACED["sgd"].bytes_of(f"{move} {bits}") for move in ("step", "undo") for bits in (32, 64)}


class Optimizer:
    def __init__(self, raced: Raced, parameters: list[Tensor], state_bits: int) -> None:
        self.optimizer = raced.ours(parameters, **raced.settings, state_bits=state_bits)
        self.step = self.optimizer.step
        for _ in range(LOOK_AT_FIRST + 1):  # these are waited for; the next one, the 18th, does not halve
            self.step()

    def undo(self) -> None:
        self.optimizer.step_back(lambda: None)  # the gradients stand


def calls(shapes: list[tuple[int, ...]], device: torch.device, optimizers: bool) -> Calls:
    torch.manual_seed(0)
    gradients = [torch.randn(shape, device=device) * 1e-3 for shape in shapes]  # one set for all: 500M weights are 2 GB

    def parameters() -> list[Tensor]:
        made: list[Tensor] = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.1) for shape in shapes]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = gradient
        return made

    source = torch.randn(sum(g.numel() for g in gradients), device=device)
    target = torch.empty_like(source)
    chosen: Calls = {
        "copy": lambda: target.copy_(source),
    }
    for raced in RACED.values() if optimizers else [RACED["sgd"]]:
        name = raced.theirs.__name__
        chosen[f"{name}(fused)"] = raced.theirs(parameters(), **raced.settings, fused=True).step
        chosen[f"{name}(foreach)"] = raced.theirs(parameters(), **raced.settings, foreach=True).step
    for bits in (32, 64):
        run = Backward([p.detach() for p in parameters()], gradients, bits)
        chosen |= {f"step {bits}": run.step, f"undo {bits}": run.undo, f"step again {bits}": run.step}
        chosen |= {f"weights back {bits}": run.weights_back, f"states back {bits}": run.states_back}
    for raced, bits in product(RACED.values(), (32, 64)) if optimizers else ():
        optimizer, name = Optimizer(raced, parameters(), bits), f"{raced.ours.__name__}({bits})"
        chosen |= {f"{name}.step": optimizer.step, f"{name}.step_back": optimizer.undo}
    return chosen


def in_turns(candidates: Calls, turns: int, seconds: Callable[[Callable[[], object]], float], deadline: Deadline):  # type: ignore[no-untyped-def]
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(3 + turns):
        deadline.check()
        for name, call in candidates.items():
            sample = seconds(call)
            if turn >= 3:
                taken[name].append(sample)
    return taken


def step_and_undo(setup: Setup, deadline: Deadline) -> Iterator[str]:
    clock = Clock(setup.device)
    small: list[tuple[int, ...]] = [(64, 64), (64,)] * 100
    cases = [([(4_000,)], 5), ([(64,)] * 20, 5)] if setup.tiny else [([(10_000_000,)], 50), ([(500_000_000,)], 15), (small, 50)]
    yield "float32 weights, momentum 0.9, every state hashed, no step that halves; candidates take turns in one process. Time on"
    yield "the GPU by events, while the host is ahead; GB/s by the bytes that must move; ratios turn by turn. `step`, `undo` and"
    yield "both phases of undoing with the adjoint, `weights back`, `states back`, with three settings' inner products, are"
    yield "queued, as in `rh.train`; so is `ReversibleSGD.step`, with what takes it back if it was refused; `step_back` waits."
    yield "Wall: one call, and the wait."
    for shapes, turns in cases:
        weights = sum(torch.Size(shape).numel() for shape in shapes)
        candidates = calls(shapes, setup.device, optimizers=weights < 100_000_000)
        device = in_turns(candidates, turns, clock.device_seconds, deadline)
        wall = in_turns(candidates, turns, clock.wall_seconds, deadline)
        del candidates
        yield from ["", f"{len(shapes)} tensor{'s' if len(shapes) > 1 else ''}, {weights:,} weights, {turns} turns:", ""]
        yield "| | ms | quartiles | wall ms | GB/s | of the copy | of SGD(fused) | quartiles | of SGD(foreach) |"
        yield "|---|---|---|---|---|---|---|---|---|"
        copy = BYTES["copy"] * weights / quartiles(device["copy"])[1]
        for name, samples in device.items():
            low, middle, high = quartiles(samples)
            cells = [f"{1e3 * middle:.4g}", f"{1e3 * low:.4g}-{1e3 * high:.4g}", f"{1e3 * quartiles(wall[name])[1]:.4g}"]
            moved = {**BYTES, **BYTES_BACK}.get(name, 0) * weights / middle
            cells += [f"{moved / 1e9:.4g}", f"{moved / copy:.2f}"] if moved else ["", ""]
            first, fused, third = ratio(samples, device["SGD(fused)"])
            foreach = ratio(samples, device["SGD(foreach)"])[1]
            yield f"| {name} | {' | '.join(cells)} | {fused:.2f} | {first:.2f}-{third:.2f} | {foreach:.2f} |"
        if clock.cuda:
            torch.cuda.empty_cache()
