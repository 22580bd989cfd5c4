"""Figures of training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from powerclip.report.plots import PANELS, STYLE, Panel, legend, points_of


@rc_context(STYLE)
def curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel] = PANELS) -> Figure:
    """The panels side by side, those that have a number: each run's values, faint, under a smoothed line."""
    panels = [panel for panel in panels if panel.in_any(metrics)]
    figure = Figure(figsize=(11 / 4 * len(panels), 2.9), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        for number, lines in enumerate(metrics.values()):
            for name, style in zip(panel.names, ("-", "--"), strict=False):
                _curve(axes, lines, name, color=f"C{number}", style=style, positive=panel.logarithmic)
        if panel.logarithmic and axes.lines:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the usual one writes formulas
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        axes.set(title=panel.title, xlabel="step", ylim=panel.limits)
    legend(row[0], metrics, linewidth=1.6)
    return figure


@rc_context(STYLE)
def intervals_plot(differences: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """Mean differences and the half-widths of their intervals, by row and comparison, one below the other."""
    names = list(next(iter(differences.values())))
    figure = Figure(figsize=(9, (0.12 + 0.1 * len(names)) * len(differences) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, of_row in enumerate(differences.values()):
        for number, (mean, half) in enumerate(of_row.values()):
            place = row + 0.3 * (number - (len(names) - 1) / 2)
            axes.errorbar(mean, place, xerr=half, fmt="o", color=f"C{number}", markersize=4, capsize=2)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set(ylim=(len(differences) - 0.5, -0.5), xlabel="points, 95 % interval over seeds")
    legend(axes, names, linewidth=4, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _curve(
    axes: Axes, lines: Sequence[Mapping[str, Any]], name: str, *, color: str, style: str, positive: bool
) -> None:
    if points := points_of(lines, name, positive=positive):
        steps, values = np.asarray(points, dtype=float).T
        axes.plot(steps, values, style, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values), style, color=color, linewidth=1.6)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve, shorter at its ends; as long as the curve."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
