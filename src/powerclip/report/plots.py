"""Figures of training curves and of comparisons."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from powerclip.report.tables import Spread, Table, printable

PANELS = {
    "loss_clip": "CLIP loss",
    "loss_powerset": "powerset alignment loss",
    "logit_scale": "inverse temperature",
    "samples_per_s": "samples per second",
}


def curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """One panel per metric, one smoothed line per run over the values themselves, which are drawn faintly.

    Args:
        metrics: the lines of each run's ``metrics.jsonl``, by run; what is not a number is left out.
    """
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for number, lines in enumerate(metrics.values()):
            points = [
                (line["step"], line[name]) for line in lines if is_number(line.get(name)) and is_number(line["step"])
            ]
            if not points:
                continue
            steps, values = np.asarray(points, dtype=float).T
            axes.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values), color=f"C{number}", linewidth=1.6)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    keys = [Line2D([], [], color=f"C{number}") for number in range(len(metrics))]
    legend = panels[0].legend(keys, [printable(name) for name in metrics], fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def comparison_plot(table: Table) -> Figure:
    """The rows of a table of results side by side: a bar at the mean, a whisker of one deviation, a dot per seed."""
    names = table.columns[2:]
    figure = Figure(figsize=(max(6.0, 0.9 * len(table.rows) + 2), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number in range(len(names)):
        for position, row in enumerate(table.rows):
            spread = row[2 + number]
            if not isinstance(spread, Spread):
                continue
            x = position + (number - (len(names) - 1) / 2) * width
            whisker = None if spread.deviation is None else 100 * spread.deviation
            axes.bar(
                x,
                100 * spread.mean,
                0.92 * width,
                yerr=whisker,
                color=f"C{number}",
                alpha=0.75,
                error_kw={"elinewidth": 1, "capsize": 2},
            )
            axes.plot([x] * len(spread.values), [100 * value for value in spread.values], "k.", markersize=3)
    labels = [f"{printable(str(row[0]))}\n{printable(str(row[1]))}" for row in table.rows]
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", parse_math=False)
    axes.tick_params(labelsize=8)
    axes.set_ylabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    keys = [Line2D([], [], color=f"C{number}", linewidth=5, alpha=0.75) for number in range(len(names))]
    place = {"ncols": len(names), "loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    legend = axes.legend(keys, [printable(name) for name in names], fontsize=8, frameon=False, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def smooth(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over a window of a twentieth of the curve, shorter at its ends; as long as the curve."""
    width = max(1, len(values) // 20)
    ones = np.ones(width)
    total: np.ndarray[Any, np.dtype[np.float64]] = np.convolve(values, ones, "same")
    return total / np.convolve(np.ones(len(values)), ones, "same")


def is_number(value: object) -> bool:
    """Whether a value from a JSON file is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def png(figure: Figure, *, dots_per_inch: int = 130) -> bytes:
    """A figure as PNG bytes; characters that its font lacks become boxes, silently."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph \d+ .* missing from")
        figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()
