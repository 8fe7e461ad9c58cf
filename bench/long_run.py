"""A hundred thousand steps: memory per weight and time of exact reversal, with and without segments.

    python -m bench.long_run [--steps 100000] [--methods rh.Reversible-segments rh.Reversible]

The race's task with a smaller model, 64-200-10 (15,010 weights), one log L2 penalty per weight, momentum 0.9. Each runs in a
process of its own. Memory is the peak of resident memory above the process with the model, divided by the number of weights;
time is CPU seconds of forward and backward over those of plain training. Every run ends with the check that the initial
weights came back bit for bit, or with an error.
"""

import argparse

from torch import nn

from bench.measure import measured
from bench.methods import METHODS
from bench.tasks import Task
from bench.timing import conditions

__all__ = ["net"]

MODEL = "bench.long_run:net"


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 10))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["rh.Reversible-segments", "rh.Reversible"])
    options = parser.parse_args(arguments)
    print(conditions(threads=1))
    weights = sum(p.numel() for p in Task(MODEL).model.parameters())
    training = measured("training", options.steps, model=MODEL)["cpu_seconds"]
    print(f"T = {options.steps:,}, {weights:,} weights; plain training: {training:.1f} s")
    print(f"{'':24}{'bytes/weight':>14}{'CPU s':>10}{'of training':>13}")
    for method in options.methods:
        result = measured(method, options.steps, model=MODEL)
        each, seconds = 1e6 * result["megabytes"] / weights, result["cpu_seconds"]
        print(f"{method:24}{each:14.0f}{seconds:10.1f}{seconds / training:13.2f}")


if __name__ == "__main__":
    main()
