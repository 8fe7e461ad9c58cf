"""The two figures of bench.tradeoff, from its table: memory against T, and time against memory with T as colour."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from sklearn.isotonic import isotonic_regression

from bench.methods import METHODS
from bench.tradeoff_table import LIMITS, Table

__all__ = ["draw"]

# Okabe and Ito's colours for the exact strategies, Tol's muted ones for the approximate, greys for the rest. Markers differ
# too, so that colour alone never tells two methods apart.
STYLES = {
    "training": ("0.5", "."),
    "rh.Reversible": ("#0072B2", "o"),
    "rh.Reversible-64": ("#56B4E9", "s"),
    "rh.Reversible-segments": ("#009E73", "D"),
    "rh.Snapshots": ("#E69F00", "^"),
    "rh.Unroll": ("#D55E00", "v"),
    "rh.Checkpoint": ("#CC79A7", "P"),
    "rh.RecursiveCheckpoint": ("#000000", "X"),
    "rh.ForwardMode": ("#A6761D", "*"),
    "rh.Truncated": ("#882255", "o"),
    "rh.DrMAD": ("#44AA99", "s"),
    "rh.Neumann": ("#999933", "D"),
    "rh.ConjugateGradient": ("#332288", "^"),
    "higher": ("0.25", "<"),
    "torchopt": ("0.4", ">"),
    "betty": ("0.55", "h"),
    "unroll": ("0.35", "1"),
    "snapshots": ("0.45", "2"),
    "checkpoints": ("0.55", "3"),
    "recursive": ("0.65", "4"),
}
LABELS = {
    "training": "training alone",
    "rh.Reversible-64": "Reversible(state_bits=64)",
    "rh.Reversible-segments": 'Reversible(segments="auto")',
    "rh.Truncated": "Truncated(10)",
    "rh.Neumann": "Neumann(20)",
    "rh.ConjugateGradient": "ConjugateGradient(20)",
}
STROKES = "1234"  # markers without a face
LABEL_GAP = 0.042  # of the axes' height
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
LEAST_MEGABYTES = 0.01  # a logarithmic axis has no zero


def draw(table: Table, prefix: str) -> list[str]:
    """Writes PREFIX-memory.png and PREFIX-time.png; returns their paths."""
    if not table.methods():
        raise SystemExit(f"{table.path}: no point was measured, see its column left_out")
    paths = [f"{prefix}-memory.png", f"{prefix}-time.png"]
    for path, make in zip(paths, (memory_figure, time_figure), strict=True):
        figure = make(table)
        figure.savefig(path, dpi=200)
        plt.close(figure)
    return paths


def label(table: Table, method: str) -> str:
    """The name; for approximate methods the range of their errors, since what is cheap may be wrong."""
    shown = LABELS.get(method, method.removeprefix("rh.") + "()" if method.startswith("rh.") else method)
    if METHODS[method].family == "hand" and method != "training":
        shown += ", by hand"
    if not METHODS[method].exact:
        errors = [error for _, error in table.medians(method, "error") if error == error]
        if not errors:
            return shown + ", approximate"
        low, high = (f"{x:.1g}" if x < 10 else f"{x:.0e}".replace("e+0", "e") for x in (min(errors), max(errors)))
        shown += f", error {low}" + (f" to {high}" if high != low else "")
    return shown


def memory_figure(table: Table) -> Figure:
    figure, axes = _axes(table)
    ends = []
    for method in table.methods():
        colour, marker = STYLES[method]
        steps, megabytes = zip(*table.medians(method, "megabytes"), strict=True)
        megabytes = [max(m, LEAST_MEGABYTES) for m in megabytes]
        exact = METHODS[method].exact
        axes.loglog(
            steps,
            megabytes,
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor=colour if exact else "white",
            linestyle=":" if method == "training" else "-" if exact else "--",
            linewidth=2.2 if method.startswith("rh.Reversible") else 1.2,
            zorder=3 if method.startswith("rh.Reversible") else 2,
        )
        ends.append((steps[-1], megabytes[-1], label(table, method), colour))
    axes.set_xlabel("T, steps of training")
    axes.set_ylabel("peak memory (MB)")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set_xticks(_every(table), [f"{s:,}" for s in _every(table)])
    axes.xaxis.set_minor_locator(NullLocator())
    _label_lines(axes, ends)
    return figure


def time_figure(table: Table) -> Figure:
    figure, axes = _axes(table)
    every = _every(table)
    norm = LogNorm(every[0], max(every[-1], every[0] + 1))
    # Without viridis' yellow, which is hard to see on white.
    colours = LinearSegmentedColormap.from_list("steps", mpl.colormaps["viridis"](np.linspace(0, 0.87, 256)))
    handles: dict[str, list[Line2D]] = {"exact": [], "approximate": []}
    for method in table.methods():
        if method == "training":
            continue
        (line, marker), exact = STYLES[method], METHODS[method].exact
        points = [(s, max(m, LEAST_MEGABYTES), t) for s, m, t in table.medians(method, "megabytes", "of_training") if t == t]
        dashes = "-" if exact else "--"
        axes.plot([m for _, m, _ in points], [t for *_, t in points], dashes, color=line, linewidth=0.9, zorder=1)
        for steps, megabytes, times in points:
            colour = colours(norm(steps))
            look = {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.4}
            if not exact or marker in STROKES:
                look = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.4}
            axes.plot(megabytes, times, marker, markersize=7.5, zorder=2, **look)
        look = {"color": line, "linestyle": dashes, "linewidth": 0.9, "markeredgecolor": "0.35", "markersize": 6.5}
        face = "0.35" if exact else "white"
        handles["exact" if exact else "approximate"].append(
            Line2D([], [], marker=marker, markerfacecolor=face, label=label(table, method), **look)
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("peak memory (MB)")
    axes.set_ylabel("CPU time (multiples of training alone)")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_locator(NullLocator())
    corner = 0.985
    for title, part in handles.items():
        if part:
            style = {
                "frameon": False,
                "fontsize": 8,
                "title_fontsize": 8,
                "alignment": "left",
                "borderpad": 0,
                "handlelength": 3.2,
            }
            figure.legend(handles=part, title=title, loc="upper left", bbox_to_anchor=(0.665, corner), **style)
            corner -= 0.0345 * (len(part) + 1.7)
    strip = figure.add_axes((0.70, 0.235, 0.24, 0.022))
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, colours), cax=strip, orientation="horizontal")
    bar.set_ticks(every, labels=[f"{s:,}" for s in every], fontsize=7, rotation=45, ha="right", rotation_mode="anchor")
    bar.minorticks_off()
    bar.ax.set_title("T, steps of training", fontsize=8)
    return figure


def _every(table: Table) -> list[int]:
    return sorted({p.steps for p in table.points if not p.left_out})


def _axes(table: Table) -> tuple[Figure, Axes]:
    """Axes on the left, room for labels on the right, the conditions below."""
    figure = plt.figure(figsize=(9, 5.6))
    axes = figure.add_axes((0.095, 0.21, 0.555, 0.76))
    axes.grid(True, which="major", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    turns = 1 + max(p.turn for p in table.points)
    runs = "One run" if turns == 1 else f"Medians of {turns} runs"
    ended = (
        " Lines that end early: a limit of time or memory." if any(p.left_out.startswith(LIMITS) for p in table.points) else ""
    )
    failed = {p.method for p in table.points if p.left_out.startswith("failed")} - set(table.methods())
    without = f" Without a result: {', '.join(LABELS.get(m, m) for m in sorted(failed))}." if failed else ""
    caption = (
        f"One hypergradient, by L2 penalties: {table.task}; scikit-learn's digits, batches of 128, SGD at lr 0.1, momentum 0.9, "
        f"float32. Peak resident memory above the process before training. {runs}, each in its own process, in turn.{ended} "
        f"Filled: exact. Open: approximate, with the range over T of the relative error against float64.{without} "
        f"{table.versions}{', ' if table.peers else ''}{table.peers}."
    )
    figure.text(0.015, 0.012, textwrap.fill(caption, 178), fontsize=6.5, color="0.3", va="bottom", linespacing=1.35)
    return figure, axes


def _label_lines(axes: Axes, ends: Sequence[tuple[Any, Any, str, str]]) -> None:
    """A column of labels right of the axes, in the order of the lines' ends, none nearer than a line of text to the next."""
    axes.figure.canvas.draw()  # fixes the limits
    heights = np.array([axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1] for x, y, *_ in ends])
    order, gaps = np.argsort(heights, kind="stable"), LABEL_GAP * np.arange(len(ends))
    # With the gaps taken out, keeping apart means keeping the order: the nearest such heights are an isotonic regression.
    placed = np.empty(len(ends))
    placed[order] = isotonic_regression(heights[order] - gaps, y_min=0.0, y_max=1.0 - gaps[-1]) + gaps
    for i, (x, y, text, colour) in enumerate(ends):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.045, placed[i]),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "linestyle": ":",
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )
