"""Figures for a paper: labels with units, colours that the colour-blind can tell apart, conditions in the file."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from reversible_hypergrad.cli.output import write
from reversible_hypergrad.cli.problem import Curves, Recipe
from reversible_hypergrad.cli.table import constants, first_lr, network, optimizer_of

__all__ = ["conditions", "learning_curves", "meta_learning", "penalties", "save", "schedules"]

# Okabe and Ito's colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BEFORE, _AFTER, _GREY = "#D55E00", "#0072B2", "#666666"
_MOST_IMAGES = 50


def conditions(results: dict[str, Any]) -> str:
    """One sentence that says what the figures show results of."""
    data, settings = results["data"], results["settings"]
    return (
        f"{data['name']} ({data['training']} training, {data['validation']} validation examples), "
        f"{network(settings['sizes'])}, {settings['steps']} steps of {settings['batch_size']} examples by "
        f"{optimizer_of(results).name}, seed {settings['seed']}; before: {constants(results)}, the best of a grid; after: "
        f"{settings['meta_steps']} meta-steps of Adam({settings['meta_lr']:g}) on exact hypergradients of the validation "
        f"loss{first_lr(results)}."
    )


def schedules(before: Recipe, after: Recipe, circumstances: str) -> Figure:
    """One panel per setting that has a value at each step."""
    settings = [setting for setting in after.optimizer.settings if setting.per != "weight"]
    kinds = ", ".join(f"{s.label} per step{' and layer' if s.per == 'layer' else ''}" for s in settings)
    figure, panels = _panels("schedules", len(settings), f"Learned schedules: {kinds}.", circumstances)
    starts, values = before.values(), after.values()
    for panel, setting in zip(panels, settings, strict=True):
        for i, value in enumerate(values[setting.name].values()):
            panel.plot(_numpy(value).ravel(), color=_COLOURS[i % len(_COLOURS)], label=f"layer {i + 1}", **_line(i))
        start = next(iter(starts[setting.name].values())).flatten()[0].item()
        panel.axhline(start, color=_GREY, linestyle=":", label="before")
        if not setting.fraction:
            panel.set_yscale("log")
            _plain_numbers(panel.yaxis)
        panel.set_ylabel(setting.label)
    _legend_above(panels[0])
    panels[-1].set_xlabel("training step")
    return figure


def penalties(after: Recipe, baseline: float, shape: tuple[int, int], circumstances: str) -> Figure:
    """One image per unit of the first layer (50 at most), as multiples of the penalty before."""
    name, value = next(iter(after.values()["l2"].items()))
    ratio = _numpy(value) / baseline
    shown = min(len(ratio), _MOST_IMAGES)
    columns = min(10, shown) if shown > 10 else -(-shown // 2)
    rows = -(-shown // columns)
    limit = max(1.1, float(np.exp(np.abs(np.log(ratio[:shown])).max())))
    figure = Figure(figsize=(6.5, max(1.8, 5.6 / columns * rows + 0.1)), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i < shown:
            image = axis.imshow(ratio[i].reshape(shape), cmap="PuOr_r", norm=LogNorm(1 / limit, limit), interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, location="right", pad=0.02)
    bar.set_label(f"L2 penalty / {baseline:g}")
    _plain_numbers(bar.ax.yaxis)
    what = f"Learned L2 penalties of {shown} of the {len(ratio)} units of {name}, one pixel per weight, one image per unit."
    return _described(figure, "penalties", what, circumstances)


def learning_curves(before: Curves, after: Curves, circumstances: str) -> Figure:
    what = "Losses of all training and validation examples along one run, in an order of minibatches not used in learning."
    figure, (axis,) = _panels("learning_curves", 1, what, circumstances)
    for curves, colour, label in ((before, _BEFORE, "before"), (after, _AFTER, "after")):
        axis.plot(curves.steps, curves.training, color=colour, linestyle="--", label=f"{label}, training")
        axis.plot(curves.steps, curves.validation, color=colour, label=f"{label}, validation")
    axis.set_yscale("log")
    _plain_numbers(axis.yaxis)
    axis.set_xlabel("training step")
    axis.set_ylabel("cross-entropy (nats)")
    _legend_above(axis)
    return figure


def meta_learning(validation: Sequence[float], chaotic: Sequence[int], circumstances: str) -> Figure:
    what = "Validation loss after training, before each meta-step's update; each meta-step has a new order of minibatches."
    figure, (axis,) = _panels("meta_learning", 1, what, circumstances)
    axis.plot(range(len(validation)), validation, color=_AFTER, marker="." if len(validation) < 30 else "")
    if chaotic:
        axis.plot(chaotic, [validation[i] for i in chaotic], "x", color=_BEFORE, label="chaotic: not followed")
        _legend_above(axis)
    axis.set_yscale("log")
    _plain_numbers(axis.yaxis)
    axis.set_xlabel("meta-step")
    axis.set_ylabel("validation cross-entropy (nats)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def save(figure: Figure, output: Path) -> list[Path]:
    """As PNG and PDF, the caption in the file's metadata and beside it as text."""
    name, caption = figure.get_label(), figure.get_gid()
    paths = [output / f"{name}.png", output / f"{name}.pdf", output / f"{name}.txt"]
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200, metadata={"Title": name, "Description": caption})
    figure.savefig(pdf, format="pdf", metadata={"Title": name, "Subject": caption})
    write(paths[0], png.getvalue())
    write(paths[1], pdf.getvalue())
    write(paths[2], "\n".join(textwrap.wrap(str(caption), 100)) + "\n")
    return paths


def _panels(name: str, count: int, what: str, circumstances: str) -> tuple[Figure, list[Any]]:
    """A figure of panels one above the other that share the horizontal axis; one column of a paper wide."""
    figure = Figure(figsize=(4.6, 1.1 + 1.9 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return _described(figure, name, what, circumstances), list(axes)


def _described(figure: Figure, name: str, what: str, circumstances: str) -> Figure:
    figure.set_label(name)
    figure.set_gid(f"{what} {circumstances}")
    return figure


def _line(i: int) -> dict[str, Any]:
    """Lines differ by more than their colour."""
    return {"linestyle": ("-", "--", "-.", (0, (1, 1)))[i % 4], "linewidth": 1.1}


def _plain_numbers(axis: Any) -> None:
    """Labels such as 0.5, 1, 2 on a logarithmic axis, the more of them the shorter its range. Call it after plotting."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    multiples = (1,) if decades > 2.5 else (1, 2, 5) if decades > 0.6 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    axis.set_major_locator(LogLocator(subs=multiples, numticks=15))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_above(axis: Any) -> None:
    columns = min(4, len(axis.get_legend_handles_labels()[0]))
    columns = 2 if columns == 4 else columns
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8, borderaxespad=0.2)


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().double().numpy()
