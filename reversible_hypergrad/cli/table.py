"""The results as a table of text."""

import textwrap
from typing import Any

from reversible_hypergrad.cli.optimizers import OPTIMIZERS, Optimizer

__all__ = ["constants", "first_lr", "network", "optimizer_of", "table"]

_LABEL, _NUMBER = 36, 19
_ROWS = (
    ("training", "training", ""),
    ("validation", "validation", ""),
    ("test", "test", ""),
    ("test, other initial weights", "test", "_other_starts"),
)


def table(results: dict[str, Any]) -> str:
    """What a reader wants to know first, 88 columns wide."""
    lines = [*textwrap.wrap(_circumstances(results), 88), ""]
    lines.append(f"{'':{_LABEL}}{'before':>{_NUMBER}}{'after':>{_NUMBER}}{'change':>12}")
    for label, part, suffix in _ROWS:
        before, after = results[f"before{suffix}"][part], results[f"after{suffix}"][part]
        lines.append(_row(f"{label}: loss", before, after, "loss", "{:.4f}"))
        lines.append(_row(f"{' ' * len(label)}  error, %", before, after, "error", "{:.2f}"))
    lines.append("")
    for label, value in _facts(results):
        first, *more = textwrap.wrap(value, 88 - 26)
        lines += [f"{label:26}{first}", *(" " * 26 + line for line in more)]
    return "\n".join(lines)


def network(sizes: list[int]) -> str:
    kind = "tanh network" if len(sizes) > 2 else "linear classifier"
    return f"{kind} {'-'.join(map(str, sizes))}"


def optimizer_of(results: dict[str, Any]) -> Optimizer:
    return OPTIMIZERS[results["settings"]["optimizer"]]


def constants(results: dict[str, Any]) -> str:
    """Those of before."""
    return ", ".join(f"{setting.label} {results['baseline'][setting.name]:g}" for setting in optimizer_of(results).settings)


def first_lr(results: dict[str, Any]) -> str:
    """Where learning begins, if not at the constants."""
    multiple = optimizer_of(results).first_lr
    return "" if multiple == 1 else f", from learning rate {multiple * results['baseline']['lr']:.2g}"


def _circumstances(results: dict[str, Any]) -> str:
    data, settings = results["data"], results["settings"]
    return (
        f"{data['name']}: {data['training']} examples to train, {data['validation']} to validate, {data['test']} to test. "
        f"A {network(settings['sizes'])}, {settings['steps']} steps of {settings['batch_size']} examples by "
        f"{optimizer_of(results).name}. Before: {constants(results)}, the best by validation loss of a grid of "
        f"{len(results['baseline']['grid'])}. After: {settings['meta_steps']} steps of Adam on hypergradients"
        f"{first_lr(results)}. Mean ± standard deviation over {settings['judged_runs']} orders of minibatches that neither has "
        "seen."
    )


def _row(label: str, before: dict[str, float], after: dict[str, float], key: str, form: str) -> str:
    def shown(score: dict[str, float]) -> str:
        return f"{form.format(score[key])} ± {form.format(score[f'{key}_sd'])}"

    change = f"{100 * (after[key] / before[key] - 1):+.0f} %" if before[key] else "-"
    return f"{label:{_LABEL}}{shown(before):>{_NUMBER}}{shown(after):>{_NUMBER}}{change:>12}"


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    counts, cost, memory = results["hyperparameters"], results["hypergradient"], results["memory"]
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if kind != "total")
    restored = "yes" if results["restored_bit_for_bit"] else "NO"
    return [
        ("hyperparameters", f"{counts['total']:,} ({kinds})"),
        (
            "one exact hypergradient",
            f"{cost['seconds']:.3f} s, training included: {cost['times_training_run']:.1f} times one training run by "
            f"torch.optim.{optimizer_of(results).name} ({cost['training_run_seconds']:.3f} s)",
        ),
        (
            "bytes kept",
            f"{memory['kept_bytes']:,} ({memory['state_bytes']:,} state, {memory['information_bytes']:,} lost bits, "
            f"{memory['log_bytes']:,} hashes) against {memory['trajectory_bytes']:,} of the trajectory of the weights",
        ),
        (
            "bits per weight and step",
            f"{results['bits_per_weight_step']:.4f}; the limit is {results['limit_bits_per_weight_step']:.4f}",
        ),
        (
            "restored bit for bit",
            f"{restored} ({results['restored_runs']} of {results['settings']['meta_steps']} runs to their first bit, "
            f"{results['states_checked']:,} states by hash on the way)",
        ),
        (
            "chaotic meta-steps",
            f"{len(results['chaotic_meta_steps'])} (hypergradient not followed, learning rates cut by a tenth)",
        ),
    ]
