"""Learns every hyperparameter of a training run by exact hypergradients through the whole of it: one L2 penalty per weight, a
learning rate per step and layer, an initial scale per layer, and of SGD a momentum per step, of AdamW both betas per step and a
weight decay per step and layer. Starts from the best constants of a small grid, AdamW at a third of their learning rate, and ends
with a table, figures, and the learned values in the output directory."""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from reversible_hypergrad.cli import search
from reversible_hypergrad.cli.data import load_digits, load_mnist
from reversible_hypergrad.cli.errors import UsageError, first_line
from reversible_hypergrad.cli.optimizers import OPTIMIZERS
from reversible_hypergrad.cli.output import show, writable, write
from reversible_hypergrad.cli.problem import Problem, Recipe
from reversible_hypergrad.cli.table import table
from reversible_hypergrad.errors import ReversalError

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """The command. Returns the exit status."""
    if options.device != "cpu":
        raise UsageError(f"--device: expected cpu, the only one so far, got {options.device!r}")
    if not options.no_figures:
        _need_matplotlib()
    output = writable(options.output)
    data = load_digits(options.seed) if options.data is None else load_mnist(options.data, options.seed)
    if options.batch_size > len(data.training):
        raise UsageError(f"--batch-size: expected at most {len(data.training)}, the training examples, got {options.batch_size}")
    try:
        problem = Problem(
            data,
            options.hidden,
            options.steps,
            options.batch_size,
            options.seed,
            options.state_bits,
            OPTIMIZERS[options.optimizer],
        )
        with _threads(options.threads):
            results = _tune(problem, options, output)
    except (FloatingPointError, OverflowError, ReversalError) as error:
        print(f"reversible_hypergrad: {first_line(error)} (a smaller --meta-lr may help)", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # as torch puts it
            raise
        raise UsageError(f"there is not enough memory for --steps {options.steps} and --hidden {options.hidden}") from error
    as_json, as_text = json.dumps(results, indent=1), table(results)
    write(output / "results.json", as_json + "\n")
    write(output / "table.txt", as_text + "\n")
    show(as_json if options.json else as_text)
    return 0


def _tune(problem: Problem, options: argparse.Namespace, output: Path) -> dict[str, Any]:
    began = time.perf_counter()
    with _bar("grid of constants", len(search.grid_of(problem.optimizer))) as bar:
        baseline = search.best_constants(problem, bar.update)
    before = problem.constant_recipe(**baseline.constants)
    recipe = problem.constant_recipe(**{**baseline.constants, "lr": problem.optimizer.first_lr * baseline.constants["lr"]})
    with _bar("meta-learning", options.meta_steps) as bar:

        def advance(loss: float) -> None:
            bar.set_postfix_str(f"validation loss {loss:.4f}, exact", refresh=False)
            bar.update()

        learning = search.learn(problem, recipe, options.meta_steps, options.meta_lr, advance)
    plain = problem.plain_seconds(before, search.JUDGED_ORDERS[0])

    # Only here is the test part looked at.
    results = _results(problem, options, baseline, learning, plain)
    parts = ("training", "validation", "test")
    for name, judged in (("before", before), ("after", recipe)):
        for key, starts in ((name, False), (f"{name}_other_starts", True)):
            scores = search.score(problem, judged, " ".join(parts), search.JUDGED_ORDERS, starts)
            results[key] = {part: asdict(score) for part, score in zip(parts, scores, strict=True)}
    results["initial_scales"] = {
        name: [s.exp().item() for s in r.log_scale] for name, r in (("before", before), ("after", recipe))
    }
    saved = io.BytesIO()
    torch.save(recipe.saved(), saved)
    write(output / "hyperparameters.pt", saved.getvalue())
    results["figures"] = [] if options.no_figures else _draw(problem, before, recipe, results, output)
    results["seconds"] = time.perf_counter() - began
    return results


def _results(
    problem: Problem, options: argparse.Namespace, baseline: search.Baseline, learning: search.Learning, plain: float
) -> dict[str, Any]:
    data, report = problem.data, learning.report
    assert report is not None
    counts = problem.constant_recipe().count()
    return {
        "data": {
            "name": data.name,
            "training": len(data.training),
            "validation": len(data.validation),
            "test": len(data.test),
        },
        "settings": {
            "optimizer": options.optimizer,
            "steps": problem.steps,
            "meta_steps": options.meta_steps,
            "meta_lr": options.meta_lr,
            "sizes": problem.sizes,
            "batch_size": problem.batch_size,
            "seed": problem.seed,
            "state_bits": problem.adjoint.state_bits,
            "threads": options.threads,
            "judged_runs": len(search.JUDGED_ORDERS),
        },
        "baseline": {**baseline.constants, "grid": baseline.grid},
        "weights": problem.weights,
        "hyperparameters": {"total": sum(counts.values()), **counts},
        "hypergradient": {
            "seconds": learning.seconds(),
            "training_run_seconds": plain,
            "times_training_run": learning.seconds() / plain,
        },
        "memory": {
            "kept_bytes": report.state_bytes + report.information_bytes + report.log_bytes,
            "state_bytes": report.state_bytes,
            "information_bytes": report.information_bytes,
            "log_bytes": report.log_bytes,
            "trajectory_bytes": report.trajectory_bytes,
        },
        "bits_per_weight_step": report.information_bits,
        "limit_bits_per_weight_step": report.limit_bits,
        "restored_bit_for_bit": learning.restored == options.meta_steps,
        "restored_runs": learning.restored,
        "states_checked": learning.checks,
        "meta_learning": learning.validation,
        "chaotic_meta_steps": learning.chaotic,
    }


def _draw(problem: Problem, before: Recipe, after: Recipe, results: dict[str, Any], output: Path) -> list[str]:
    from reversible_hypergrad.cli import figures

    curves_before, curves_after = (problem.curves(recipe, search.JUDGED_ORDERS[0]) for recipe in (before, after))
    conditions = figures.conditions(results)
    drawn = [
        figures.schedules(before, after, conditions),
        figures.penalties(after, results["baseline"]["l2"], problem.data.shape, conditions),
        figures.learning_curves(curves_before, curves_after, conditions),
        figures.meta_learning(results["meta_learning"], results["chaotic_meta_steps"], conditions),
    ]
    return [str(path) for figure in drawn for path in figures.save(figure, output)]


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("matplotlib, for the figures, is not installed: pip install matplotlib, or give --no-figures") from None


def _bar(what: str, total: int) -> Any:
    # No bar where stderr is a file or a pipe.
    return tqdm(total=total, desc=what, disable=None, leave=False, dynamic_ncols=True)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
