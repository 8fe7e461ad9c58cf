"""The race: one hypergradient, by each exact method, each in a process of its own.

    python -m bench.race [--steps 100 500 2000] [--repeats 3] [--methods rh.Reversible snapshots ...] [--csv FILE]

The task is bench.tasks' with the model "mlp": 64-256-256-10 (85,002 weights) on scikit-learn's digits, float32, one CPU thread;
the gradient of the validation loss with respect to one log L2 penalty per weight. Reported per method: CPU seconds of forward
and backward together, peak resident memory (see bench.measure: beyond the warm-up, and with the workspace of a step), and the
relative error against float64 (for up to --check steps), and wall-clock seconds of a warm-up of three steps, which are not in
the time: there those -compiled are compiled, or load what is in torch's cache on disk.
bench.tradeoff draws the same for many more numbers of steps.
"""

import argparse
import csv
import statistics
from pathlib import Path

from bench.measure import LeftOut, measured, reference
from bench.methods import METHODS
from bench.timing import conditions, when

HEADER = ["method", "steps", "cpu_seconds", "of_snapshots", "megabytes_beyond_warm_up", "megabytes", "error", "warm_up_seconds"]
# Those that run on a fresh machine and are exact; forward mode would need a tangent for each of 85,002 hyperparameters.
RACED = [m.name for m in METHODS.values() if m.exact and m.family != "peer" and m.most is None]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=RACED, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--repeats", type=int, default=3, help="the methods take turns; ratios are medians over turns")
    parser.add_argument("--check", type=int, default=100, help="compare with float64 up to this many steps")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    where = f"{conditions(threads=1)}, {when()}"
    print(where)
    rows = []
    for steps in options.steps:
        exact = reference("mlp", "weight", steps) if steps <= options.check else None
        runs: dict[str, list[dict[str, float]]] = {m: [] for m in options.methods}
        for _ in range(options.repeats):
            for method in options.methods:
                try:
                    runs[method].append(measured(method, steps, exact=exact))
                except LeftOut as reason:
                    raise SystemExit(f"{method} at {steps} steps: {reason}") from None
        baseline = runs.get("snapshots", runs[options.methods[0]])
        print(
            f"\nT = {steps:<20}{'CPU s':>9}{'of snapshots':>14}{'MB beyond warm-up':>19}{'peak MB':>9}{'error':>10}"
            f"{'warm-up s':>11}"
        )
        for method, results in runs.items():
            seconds, beyond, peak = (
                statistics.median(r[key] for r in results) for key in ("cpu_seconds", "megabytes_beyond_warm_up", "megabytes")
            )
            times = statistics.median(r["cpu_seconds"] / b["cpu_seconds"] for r, b in zip(results, baseline, strict=True))
            error = f"{results[0]['error']:.1e}" if "error" in results[0] else ""
            # The longest: later ones find on disk what the first one has compiled.
            warm_up = max(r["warm_up_seconds"] for r in results)
            print(f"{method:24}{seconds:9.2f}{times:14.2f}{beyond:19.1f}{peak:9.1f}{error:>10}{warm_up:11.1f}")
            rows.append(
                [method, steps, f"{seconds:.3f}", f"{times:.3f}", f"{beyond:.1f}", f"{peak:.1f}", error, f"{warm_up:.1f}"]
            )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            file.write(f"# {where}; medians of {options.repeats}\n")
            csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


if __name__ == "__main__":
    main()
