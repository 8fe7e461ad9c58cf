"""What a reversible step and its undoing cost, beside torch.optim.SGD, in one run.

    python -m bench.sgd_step [--weights 10000000] [--turns 30] [--instruction-set avx2]

Prints nanoseconds per weight, GB/s by the bytes that must move, the ratio to torch.optim.SGD(fused=True) turn by turn, and
the fraction of a plain copy's bandwidth; then the same for a model of 200 small tensors, in microseconds per step.

At momentum 0.9 the velocities are halved in 15 steps of 100, and a bit of each goes to a plane. "step 64" is one without,
"halving 64" one with it, as are "undo" and "undo halving". --instruction-set is that of this library's kernels alone.
"""

import argparse
from collections.abc import Callable

import torch

import reversible_hypergrad as rh
from bench.timing import conditions, in_turns, median, ratio, when

# Bytes per float32 weight that one call must move: gradient read, weight written, states read and written.
# torch's SGD reads the weight too. A plane is an eighth of a byte per weight, in some steps, and left out.
BYTES = {
    "copy": 8,
    "SGD(fused)": 20,
    "SGD(foreach)": 20,
    "step 32": 4 + 4 + 8 + 8,
    "step 64": 4 + 4 + 16 + 16,
    # Undoing: weights (v read, x read and written, weight written), then states (gradient read, v read and written).
    "undo 32": (4 + 8 + 4) + (4 + 8),
    "undo 64": (8 + 16 + 4) + (4 + 16),
}
BYTES |= {
    f"{move} {bits}": BYTES[f"{of} {bits}"] for move, of in (("halving", "step"), ("undo halving", "undo")) for bits in (32, 64)
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

    def __init__(self, shapes: list[tuple[int, ...]], state_bits: int, steps_before: int = 1) -> None:
        self.optimizer = rh.ReversibleSGD(parameters(shapes), lr=1e-3, momentum=0.9, state_bits=state_bits)
        for _ in range(steps_before):  # one at least: undoing the first dissolves the state
            self.optimizer.step()

    def step(self) -> None:
        self.optimizer.step()

    def undo(self) -> None:
        self.optimizer.step_back(lambda: None)  # the gradients stand


def candidates(shapes: list[tuple[int, ...]], halving: bool) -> dict[str, Callable[[], object]]:
    chosen: dict[str, Callable[[], object]] = {
        "SGD(fused)": torch.optim.SGD(parameters(shapes), lr=1e-3, momentum=0.9, fused=True).step,
        "SGD(foreach)": torch.optim.SGD(parameters(shapes), lr=1e-3, momentum=0.9, foreach=True).step,
    }
    for bits in (32, 64):
        pair = Pair(shapes, bits)
        chosen |= {f"step {bits}": pair.step, f"undo {bits}": pair.undo}
        if halving:
            pair = Pair(shapes, bits, HALVING)
            chosen |= {f"halving {bits}": pair.step, f"undo halving {bits}": pair.undo}
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=10_000_000)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--instruction-set", choices=rh.core.instruction_sets(), default=rh.core.instruction_sets()[0])
    options = parser.parse_args(arguments)
    rh.core.use_instruction_set(options.instruction_set)
    print(f"{conditions()}, {options.instruction_set} kernels, {when()}")

    count = options.weights
    source, target = torch.randn(count), torch.empty(count)
    timed = in_turns({"copy": lambda: target.copy_(source), **candidates([(count,)], halving=True)}, options.turns)
    copy_rate = BYTES["copy"] * count / median(timed["copy"])
    print(f"\none tensor of {count:,} float32 weights, momentum 0.9, every step hashed; medians of {options.turns} turns")
    print(f"{'':16}{'ns/weight':>10}{'GB/s':>8}{'of copy':>9}{'of SGD(fused)':>16}  quartiles")
    for name, seconds in timed.items():
        rate = BYTES[name] * count / median(seconds)
        low, middle, high = ratio(seconds, timed["SGD(fused)"])
        print(
            f"{name:16}{median(seconds) / count * 1e9:10.3f}{rate / 1e9:8.1f}{rate / copy_rate:9.2f}{middle:16.2f}"
            f"  {low:.2f}-{high:.2f}"
        )
    for bits in (32, 64):
        low, middle, high = ratio(timed[f"undo {bits}"], timed[f"step {bits}"])
        print(f"both kernels of undo {bits} / step {bits}: {middle:.2f} ({low:.2f}-{high:.2f})")

    shapes = [(64, 64), (64,)] * 100
    timed = in_turns(candidates(shapes, halving=False), 10 * options.turns)
    print(f"\n{len(shapes)} tensors of 64x64 and 64 weights; medians of {10 * options.turns} turns")
    print(f"{'':16}{'us/step':>10}{'of SGD(foreach)':>18}  quartiles")
    for name, seconds in timed.items():
        low, middle, high = ratio(seconds, timed["SGD(foreach)"])
        print(f"{name:16}{median(seconds) * 1e6:10.0f}{middle:18.2f}  {low:.2f}-{high:.2f}")


if __name__ == "__main__":
    main()
