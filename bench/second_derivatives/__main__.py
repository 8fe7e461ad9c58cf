"""The second derivatives of torch's layers, losses, parametrizations and functions, against differences of their gradients.

    python -m bench.second_derivatives [--only CTCLoss LSTM] [--all]

Each case is a module with inputs away from kinks. Of a scalar that is not linear in its outputs, torch's products of the Hessian
by all inputs and parameters with a random direction, in float64 and in float32, are compared with differences of fourth order of
the gradient, in float64. Printed: those that are wrong or missing in this torch, or --all. Missing are those that torch refuses;
"on a jump" is a layer whose gradient jumps where every such layer starts, so that differences say nothing.
"""

import argparse
import warnings

import torch

from bench.second_derivatives.scan import CASES, scan
from bench.timing import conditions, when


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--all", action="store_true", help="print those that are right, too")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # deprecated layers, shapes of targets
    print(f"{conditions()}, {when()}\n")
    print("| case | float64 | float32 | error | what torch says |\n|---|---|---|---|---|")
    counts: dict[str, int] = {}
    for name in options.only:
        wide, narrow = scan(CASES[name], torch.float64), scan(CASES[name], torch.float32)
        worse = wide if wide.verdict != "right" else narrow
        counts[worse.verdict] = counts.get(worse.verdict, 0) + 1
        if worse.verdict != "right" or options.all:
            error, said = "" if worse.error is None else f"{worse.error:.1e}", worse.message.replace("|", "\\|")
            print(f"| {name} | {wide.verdict} | {narrow.verdict} | {error} | {said} |", flush=True)
    print(f"\n{len(options.only)} cases: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}")


if __name__ == "__main__":
    main()
