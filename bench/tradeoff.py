"""Memory, time and error of every strategy and every installed peer, from 10 to 10,000 steps; a CSV and two figures.

    python -m bench.tradeoff [--model mlp] [--steps 10 30 100 ...] [--methods rh.Reversible higher ...] [--repeats 3]
        [--seconds 300] [--gigabytes 8] [--csv FILE] [--figures PREFIX] [--again [METHOD ...]] [--draw]

The task is bench.tasks'; MODEL may be your own. Every point is measured in a process of its own (bench.measure), the methods
taking turns. A point that passes a limit is left out, and so are those that are sure to: the CSV's ``left_out`` says why. Points
already in the CSV are not measured again, so an interrupted run goes on where it was; --again measures them (or those of the
named methods) anew, --draw only draws. PREFIX-memory.png and PREFIX-time.png are written from the CSV.
"""

import argparse
import math
from pathlib import Path

from tqdm import tqdm

from bench import peers
from bench.measure import LeftOut, measured, reference
from bench.methods import METHODS
from bench.tasks import MODELS, PENALTIES, Task
from bench.timing import conditions
from bench.tradeoff_table import LIMITS, Point, Table

STEPS = [10, 30, 100, 300, 1000, 3000, 10_000]
COMPARED = ["training", *(m.name for m in METHODS.values() if m.family != "hand" and not m.compiled)]
# A prediction must pass the limit by this much before it replaces the measurement.
SURE = 1.3


def reason_at_once(method: str, hyperparameters: int) -> str | None:
    """Why a method is not measured at any number of steps."""
    most = METHODS[method].most
    if most is not None and hyperparameters > most:
        return f"needs a tangent per hyperparameter, here {hyperparameters:,}"
    return METHODS[method].missing()


def reason_by_growth(earlier: list[Point], steps: int, seconds: float, gigabytes: float) -> str | None:
    """Why a point is sure to pass a limit, from the measured ones of fewer steps, or from one that already did."""
    for point in earlier:
        if point.left_out.startswith(LIMITS):
            return point.left_out if "at T =" in point.left_out else f"{point.left_out} at T = {point.steps}"
    known = [p for p in earlier if not p.left_out][-2:]
    for what, limit, unit, values in (
        ("time", seconds, "s", [p.wall_seconds for p in known]),
        ("memory", gigabytes, "GB", [p.megabytes / 1000 for p in known]),
    ):
        predicted = extrapolate([p.steps for p in known], values, steps)
        if predicted is not None and predicted > SURE * limit:
            return f"predicted {predicted:.3g} {unit} of {what}, limit {limit:g} {unit}"
    return None


def extrapolate(steps: list[int], values: list[float], target: int) -> float | None:
    """By the power law through the last two points, at most linear; None from fewer than two."""
    if len(values) < 2 or min(values) <= 0:
        return None
    power = math.log(values[1] / values[0]) / math.log(steps[1] / steps[0])
    return float(values[1] * (target / steps[1]) ** min(max(power, 0.0), 1.0))


def measure_all(table: Table, options: argparse.Namespace) -> None:
    """Every point that the table lacks, each turn of each number of steps."""
    hyperparameters = sum(p.numel() for p in Task(options.model, penalties=options.penalties).penalty)
    methods = [m for m in options.methods if m != "training"]
    at_once = {m: reason_at_once(m, hyperparameters) for m in methods}
    for method, reason in at_once.items():
        if reason:
            print(f"{method} is left out: {reason}")
    todo = [(s, t, m) for s in sorted(options.steps) for t in range(options.repeats) for m in ["training", *methods]]
    todo = [(s, t, m) for s, t, m in todo if table.find(m, s, t) is None]
    with tqdm(todo, unit="point") as bar:
        for steps, turn, method in bar:
            if table.left_out(method, steps):
                continue
            bar.set_description(f"T = {steps} {method}")
            point = Point(method, METHODS[method].exact, steps, turn)
            try:
                growth = reason_by_growth(table.before(method, steps), steps, options.seconds, options.gigabytes)
                if reason := at_once.get(method) or growth:
                    raise LeftOut(reason)
                result = measured(
                    method,
                    steps,
                    model=options.model,
                    penalties=options.penalties,
                    exact=reference(options.model, options.penalties, steps, options.references),
                    seconds=options.seconds,
                    gigabytes=options.gigabytes,
                )
            except LeftOut as left_out:
                point.left_out = str(left_out)
            else:
                point.take(result, table.find("training", steps, turn))
            table.add(point)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp", help=f"{', '.join(MODELS)} or MODULE:FUNCTION")
    parser.add_argument("--penalties", choices=PENALTIES, default="weight", help="hyperparameters per weight, or per tensor")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=COMPARED, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300, help="limit per point")
    parser.add_argument("--gigabytes", type=float, default=8, help="limit per point, the process itself (0.3) included")
    parser.add_argument("--csv", type=Path, default=Path("bench/results/tradeoff.csv"))
    parser.add_argument("--figures", default="docs/tradeoff", metavar="PREFIX")
    parser.add_argument("--references", type=Path, help="folder that keeps the float64 hypergradients")
    parser.add_argument("--again", nargs="*", choices=METHODS, metavar="METHOD")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    if not options.draw:
        weights = sum(p.numel() for p in Task(options.model).model.parameters())
        task = f"model {options.model}, {weights:,} weights, penalties per {options.penalties}"
        table = Table.open(options.csv, task, conditions(threads=1), peers.versions())
        if options.again is not None:
            table.forget(options.again or options.methods, options.steps)
        measure_all(table, options)
    from bench.tradeoff_figures import draw  # not above: the measured processes import this file, and need no matplotlib

    for path in draw(Table.read(options.csv), options.figures):
        print(path)


if __name__ == "__main__":
    main()
