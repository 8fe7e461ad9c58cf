"""What a reversible step and its undoing cost, beside torch's optimizer, in one run.

    python -m bench.optimizer_step [sgd|adamw] [--weights 10000000] [--turns 30] [--instruction-set avx2]

Prints nanoseconds per weight, GB/s by the bytes that must move, the ratio to torch's fused optimizer turn by turn, and the
fraction of a plain copy's bandwidth; then the same for a model of 200 small tensors, in microseconds per step.

At momentum 0.9 the velocities are halved in 15 steps of 100, and a bit of each goes to a plane. "step 64" is one without,
"halving 64" one with it, as are "undo" and "undo halving". --instruction-set is that of this library's kernels alone.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import reversible_hypergrad as rh
from bench.timing import conditions, in_turns, median, ratio, when


@dataclass(frozen=True)
class Raced:
    """An optimizer of torch and ours.

    Bytes per float32 weight that one call must move: gradient and weight read, weight written, states read and written; ours
    reads its integers in place of the weight. A plane is an eighth of a byte per weight, in some steps, and left out. Undoing:
    the weights (states read, integers read and written, weight written), then the states (gradient read, they read and written).
    """

    theirs: Any
    ours: Any
    settings: dict[str, Any]
    theirs_bytes: int
    step: dict[int, int]
    undo: dict[int, int]

    def bytes_of(self, name: str) -> int:
        kind, _, bits = name.rpartition(" ")
        if name == "copy":
            return 8
        return (self.undo if "undo" in kind else self.step)[int(bits)] if bits in ("32", "64") else self.theirs_bytes


RACED = {
    "sgd": Raced(
        torch.optim.SGD,
        rh.ReversibleSGD,
        {"lr": 1e-3, "momentum": 0.9},
        theirs_bytes=20,
        step={32: 4 + 4 + 8 + 8, 64: 4 + 4 + 16 + 16},
        undo={32: (4 + 8 + 4) + (4 + 8), 64: (8 + 16 + 4) + (4 + 16)},
    ),
    "adamw": Raced(
        torch.optim.AdamW,
        rh.ReversibleAdamW,
        {"lr": 1e-3},
        theirs_bytes=28,
        step={32: 4 + 4 + 8 + 8 + 16, 64: 4 + 4 + 16 + 16 + 16},
        undo={32: (4 + 8 + 8 + 4) + (4 + 8 + 16), 64: (8 + 8 + 16 + 4) + (4 + 16 + 16)},
    ),
}
HALVING = 6  # steps before the first one at momentum 0.9 that halves: 0.9^7 < 1/2


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return made


class Pair:
    """A reversible optimizer whose step and undo are timed apart: each turn takes one step and undoes it."""

    def __init__(self, raced: Raced, shapes: list[tuple[int, ...]], state_bits: int, steps_before: int = 1) -> None:
        self.optimizer = raced.ours(parameters(shapes), **raced.settings, state_bits=state_bits)
        for _ in range(steps_before):  # one at least: undoing the first dissolves the state
            self.optimizer.step()

    def step(self) -> None:
        self.optimizer.step()

    def undo(self) -> None:
        self.optimizer.step_back(lambda: None)  # the gradients stand


def candidates(raced: Raced, shapes: list[tuple[int, ...]], halving: bool) -> dict[str, Callable[[], object]]:
    chosen: dict[str, Callable[[], object]] = {
        "fused": raced.theirs(parameters(shapes), **raced.settings, fused=True).step,
        "foreach": raced.theirs(parameters(shapes), **raced.settings, foreach=True).step,
    }
    for bits in (32, 64):
        pair = Pair(raced, shapes, bits)
        chosen |= {f"step {bits}": pair.step, f"undo {bits}": pair.undo}
        if halving:
            pair = Pair(raced, shapes, bits, HALVING)
            chosen |= {f"halving {bits}": pair.step, f"undo halving {bits}": pair.undo}
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizer", choices=RACED, nargs="?", default="sgd")
    parser.add_argument("--weights", type=int, default=10_000_000)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--instruction-set", choices=rh.core.instruction_sets(), default=rh.core.instruction_sets()[0])
    options = parser.parse_args(arguments)
    rh.core.use_instruction_set(options.instruction_set)
    print(f"{conditions()}, {options.instruction_set} kernels, {when()}")

    raced, count = RACED[options.optimizer], options.weights
    theirs = raced.theirs.__name__
    source, target = torch.randn(count), torch.empty(count)
    timed = in_turns({"copy": lambda: target.copy_(source), **candidates(raced, [(count,)], halving=True)}, options.turns)
    copy_rate = raced.bytes_of("copy") * count / median(timed["copy"])
    print(f"\none tensor of {count:,} float32 weights, {theirs}, every step hashed; medians of {options.turns} turns")
    print(f"{'':16}{'ns/weight':>10}{'GB/s':>8}{'of copy':>9}{'of fused':>10}  quartiles")
    for name, seconds in timed.items():
        rate = raced.bytes_of(name) * count / median(seconds)
        low, middle, high = ratio(seconds, timed["fused"])
        print(
            f"{name:16}{median(seconds) / count * 1e9:10.3f}{rate / 1e9:8.1f}{rate / copy_rate:9.2f}{middle:10.2f}"
            f"  {low:.2f}-{high:.2f}"
        )
    for bits in (32, 64):
        low, middle, high = ratio(timed[f"undo {bits}"], timed[f"step {bits}"])
        print(f"both kernels of undo {bits} / step {bits}: {middle:.2f} ({low:.2f}-{high:.2f})")

    shapes = [(64, 64), (64,)] * 100
    timed = in_turns(candidates(raced, shapes, halving=False), 10 * options.turns)
    print(f"\n{len(shapes)} tensors of 64x64 and 64 weights; medians of {10 * options.turns} turns")
    print(f"{'':16}{'us/step':>10}{'of foreach':>12}  quartiles")
    for name, seconds in timed.items():
        low, middle, high = ratio(seconds, timed["foreach"])
        print(f"{name:16}{median(seconds) * 1e6:10.0f}{middle:12.2f}  {low:.2f}-{high:.2f}")


if __name__ == "__main__":
    main()
