"""The kernels' medians beside the yardstick of the same run and the committed results.

    python -m bench.kernels [--weights 10000 1000000] [--rounds 50] [--results bench/results/kernels.json] [--update]

Runs bench/kernels under pytest-benchmark and prints, for each kernel and size, the median, its ratio to torch.optim.SGD(fused)
at the same size in the same run, and how that ratio compares with the committed one: ratios, since machines differ. --update
writes this run's medians as the new results. Exit status 1 if a ratio grew by more than --tolerance (default: never).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench.timing import conditions, when

HERE = Path(__file__).parent
YARDSTICK = "yardstick"
Medians = dict[str, dict[str, float]]  # size -> kernel -> seconds


def run(weights: list[int], rounds: int) -> Medians:
    """Seconds, by size and kernel."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        arguments = [
            str(HERE),
            "-q",
            "-p",
            "no:cacheprovider",
            "--benchmark-enable",
            "--benchmark-quiet",
            f"--benchmark-json={out}",
        ]
        status = pytest.main([*arguments, "--rounds", str(rounds), "--weights", *map(str, weights)])
        if status:
            raise SystemExit(int(status))
        benchmarks: list[dict[str, Any]] = json.loads(out.read_text())["benchmarks"]
    medians: Medians = {}
    for each in benchmarks:
        given = each["params"]
        name = each["name"].partition("[")[0].removeprefix("test_")
        name += f" {given['state_bits']}" if "state_bits" in given else ""
        medians.setdefault(str(given["weights"]), {})[name] = each["stats"]["median"]
    return medians


def ratios(medians: Medians) -> dict[tuple[str, str], float]:
    return {
        (size, name): seconds / kernels[YARDSTICK]
        for size, kernels in medians.items()
        for name, seconds in kernels.items()
        if name != YARDSTICK
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--results", type=Path, default=Path("bench/results/kernels.json"))
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--tolerance", type=float, default=float("inf"), metavar="FACTOR", help="e.g. 1.2")
    options = parser.parse_args(arguments)
    medians = run(options.weights, options.rounds)
    committed = json.loads(options.results.read_text()) if options.results.exists() else {"medians": {}, "conditions": "nothing"}
    before, now = ratios(committed["medians"]), ratios(medians)
    print(f"\nnow: {conditions(threads=1)}, {when()}\ncommitted: {committed['conditions']}")
    print(f"\n{'':12}{'weights':>12}{'median us':>12}{'of SGD(fused)':>15}{'committed':>11}{'change':>9}")
    for (size, name), of in now.items():
        old = before.get((size, name))
        change = "" if old is None else f"{old:11.2f}{of / old - 1:+9.0%}"
        print(f"{name:12}{int(size):12,}{1e6 * medians[size][name]:12.1f}{of:15.2f}{change}")
    for size, kernels in medians.items():
        for bits in (32, 64):
            fused, apart = kernels.get(f"back {bits}"), kernels.get(f"back_in_torch {bits}")
            if fused and apart:
                print(
                    f"a step back with its adjoint in the kernels, of one with it in torch: {fused / apart:.2f} "
                    f"({bits}-bit state, {int(size):,} weights)"
                )
    if options.update:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        rounded = {size: {name: float(f"{s:.4g}") for name, s in kernels.items()} for size, kernels in medians.items()}
        options.results.write_text(
            json.dumps({"conditions": f"{conditions(threads=1)}, {when()}", "medians": rounded}, indent=1) + "\n"
        )
        print(f"written: {options.results}")
    slower = [key for key, of in now.items() if key in before and of > options.tolerance * before[key]]
    for size, name in slower:
        print(f"slower than committed by more than {options.tolerance:g}: {name} at {int(size):,} weights")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
