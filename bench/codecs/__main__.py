"""The codec of the library beside the rational one of 2015: bits, noise, speed.

    python -m bench.codecs [--steps 1500] [--weights 100000 4000000] [--turns 15] [--out bench/results/codecs.md]

Prints tables in Markdown; --out writes them to a file. Needs scikit-learn and a C++ compiler.
"""

import argparse
import math
import os
from pathlib import Path

import torch

from bench.codecs import noise, speed
from bench.codecs.rational import VALUES, approximate
from bench.timing import conditions, median, ratio
from reversible_hypergrad import core

MOMENTUM = 0.9  # of the timings


def bits_and_noise(steps: int) -> str:
    task = noise.Digits(steps)
    lines = [
        f"SGD, {steps:,} steps of an MLP with {len(task.start):,} weights (digits, float32 model), at learning rates of "
        f"{', '.join(f'{rate:g}' for rate in noise.RATES.values())}. Distance: of the last weights from the same run in float64, "
        "relative, Euclidean. Kept: bits per weight and step, and for n/d with what the accumulators "
        "occupy. Every run was undone to its first bits.",
        "",
        "| momentum | limit, bits | codec | state | momentum is | kept, bits | distance | float32 SGD |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for momentum in noise.RATES:
        exact = noise.plain(task, momentum, steps, torch.float64)
        float32 = noise.distance(noise.plain(task, momentum, steps, torch.float32), exact)
        for codec in ("rational", "planes"):
            for state_bits in (64, 32):
                run = noise.reversible(task, momentum, steps, codec, state_bits)
                if not run.restored:
                    raise SystemExit(f"{codec}, {state_bits} bits, momentum {momentum}: the way back did not end at the start")
                kept, name = f"{run.bits / steps:.5f}", f"{momentum:g}"
                if codec == "rational":
                    name = str(approximate(momentum, state_bits))
                    kept += f" + {state_bits / VALUES / steps:.5f}"
                lines.append(
                    f"| {momentum:g} | {-math.log2(momentum):.5f} | {'n/d' if codec == 'rational' else 'planes'} | {state_bits} "
                    f"| {name} | {kept} | {noise.distance(run.weights, exact):.1e} | {float32:.1e} |"
                )
    return "\n".join(lines)


def speeds(weights: list[int], turns: int) -> str:
    library = speed.compiled()
    lines = [
        f"A decay by {MOMENTUM:g} and its undoing, averaged over {speed.STEPS} in a row, without the additions of a step; "
        f"medians of {turns} turns; both codecs are plain C++, compiled with {' '.join(speed.FLAGS[:2])}.",
        "",
        "| weights | state | n/d, ns per weight | planes, ns per weight | ratio turn by turn (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for size in weights:
        timed = speed.measure(library, size, MOMENTUM, turns)
        for state_bits in (64, 32):
            old, new = timed["Rational", state_bits], timed["Planes", state_bits]
            low, middle, high = ratio(old, new)
            times = " | ".join(f"{median(seconds) / size * 1e9:.3f}" for seconds in (old, new))
            lines.append(f"| {size:,} | {state_bits} | {times} | {middle:.1f} ({low:.1f}-{high:.1f}) |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--weights", type=int, nargs="+", default=[100_000, 4_000_000])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = "\n\n".join(
        [
            "# Two codecs for what a decay drops",
            "Lazy scales with bit planes (planes) and the rational numbers of 2015 (n/d); see docs/arithmetic.md. "
            f"By `python -m bench.codecs`, on: {conditions()}, {core.instruction_sets()[0]}, load {os.getloadavg()[0]:.0f}.",
            "## Bits and noise",
            bits_and_noise(options.steps),
            "## Speed",
            speeds(options.weights, options.turns),
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
