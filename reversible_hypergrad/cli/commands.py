"""Arguments in, exit status out."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from reversible_hypergrad.cli import check, tune
from reversible_hypergrad.cli.errors import UsageError, first_line
from reversible_hypergrad.cli.optimizers import OPTIMIZERS

__all__ = ["main"]

_MOST = 10**9
_THREADS = 1024
_MOST_META_LR = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0: done; ``check`` found nothing wrong. 1: ``check`` found something, or training failed. 2: bad arguments or data, or output
    that cannot be written; one line on stderr says which. 130: interrupted.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        status: int = options.run(options)
    except (UsageError, OSError) as error:
        print(f"reversible_hypergrad: {error if isinstance(error, UsageError) else first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reversible_hypergrad: interrupted", file=sys.stderr)
        return 130
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the options)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m reversible_hypergrad", description="Exact hypergradients through training.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_tune(
        commands.add_parser("tune", help="learn thousands of hyperparameters of one training run", description=tune.__doc__)
    )
    _add_check(commands.add_parser("check", help="tell whether a loss can be replayed", description=check.__doc__))
    return parser


def _add_tune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DIR", type=Path, help="MNIST's four IDX files, gzipped or not (default: scikit-learn's digits)")
    add("--optimizer", choices=OPTIMIZERS, default="sgd", help="whose settings are learned (default: %(default)s)")
    add("--steps", type=_whole(2, _MOST), default=200, help="of training (default: %(default)s)")
    add("--meta-steps", type=_whole(1, _MOST), default=80, help="of the outer Adam (default: %(default)s)")
    add("--meta-lr", type=_rate, default=0.05, help="its learning rate, falling linearly to 0 (default: %(default)s)")
    add(
        "--hidden",
        type=_whole(2, _MOST),
        nargs="*",
        default=[50],
        metavar="UNITS",
        help="sizes of the hidden layers; none for a linear classifier (default: 50)",
    )
    add("--batch-size", type=_whole(1, _MOST), default=100, help="examples per step (default: %(default)s)")
    add("--seed", type=_whole(0, 2**32 - 1), default=0, help="of split, initial weights and batches (default: %(default)s)")
    add("--device", default="cpu", help="cpu, the only one so far")
    add(
        "--threads",
        type=_whole(1, _THREADS),
        default=1,
        help="of torch; one is fastest for a small model (default: %(default)s)",
    )
    add("--state-bits", type=int, choices=(32, 64), default=32, help="width of the fixed-point state (default: %(default)s)")
    add("--output", metavar="DIR", type=Path, default=Path("tuned"), help="where figures and results go (default: %(default)s)")
    add("--no-figures", action="store_true", help="draw nothing")
    add("--json", action="store_true", help="print the results as JSON in place of the table")
    parser.set_defaults(run=tune.run)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns (model, loss, batch, hyperparameters); found from the present directory",
    )
    parser.add_argument("--seed", type=_whole(0, 2**64 - 1), default=0, help="as for train() (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=check.run)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # also of more than 4,300 digits
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {_short(text)}")
        if number > most:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {most:,}, got {_short(text)}")
        return number

    return read


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= _MOST_META_LR:
        raise argparse.ArgumentTypeError(
            f"expected a number above 0 and at most {_MOST_META_LR} (it moves logarithms), got {_short(text)}"
        )
    return number


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
