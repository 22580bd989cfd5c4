"""Figures of training curves and of comparisons."""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from powerclip.report.tables import Spread, Table, printable

PANELS = {
    "loss_clip": "CLIP loss",
    "loss_powerset": "powerset alignment loss",
    "logit_scale": "inverse temperature",
    "samples_per_s": "samples per second",
}

STYLE = {
    "font.size": 8,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1,
}


@rc_context(STYLE)
def curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A panel per metric: each run's values, faint, under a smoothed line; what is not a number is left out."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for number, lines in enumerate(metrics.values()):
            pairs = [(line["step"], line.get(name)) for line in lines]
            if points := [pair for pair in pairs if all(map(is_number, pair))]:
                steps, values = np.asarray(points, dtype=float).T
                axes.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
                axes.plot(steps, smooth(values), color=f"C{number}", linewidth=1.6)
        axes.set(title=title, xlabel="step")
    _legend(panels[0], metrics, linewidth=1.6)
    return figure


@rc_context(STYLE)
def comparison_plot(table: Table) -> Figure:
    """The rows of a table of results side by side: a bar at the mean, a whisker of one deviation, a dot per seed."""
    names = table.columns[2:]
    figure = Figure(figsize=(max(6.0, 0.9 * len(table.rows) + 2), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for position, row in enumerate(table.rows):
        for number, spread in enumerate(row[2:]):
            if isinstance(spread, Spread):
                x = position + (number - (len(names) - 1) / 2) * width
                whisker = None if spread.deviation is None else 100 * spread.deviation
                axes.bar(x, 100 * spread.mean, 0.92 * width, yerr=whisker, capsize=2, color=f"C{number}", alpha=0.75)
                axes.plot([x] * len(spread.values), [100 * value for value in spread.values], "k.", markersize=3)
    labels = ["\n".join(printable(str(cell)) for cell in row[:2]) for row in table.rows]
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_ylabel("%")
    _legend(axes, names, linewidth=5, alpha=0.75, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _legend(axes: Axes, names: Iterable[str], *, linewidth: float, alpha: float = 1.0, **options: Any) -> None:
    """Name the colours C0, C1, ... (lines' own labels may not begin with "_")."""
    shown = [printable(name) for name in names]
    keys = [Line2D([], [], color=f"C{number}", linewidth=linewidth, alpha=alpha) for number in range(len(shown))]
    axes.legend(keys, shown, **options)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve, shorter at its ends; as long as the curve."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def is_number(value: object) -> bool:
    """Whether a value from a JSON file is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes; characters that its font lacks become boxes, silently."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph \d+ .* missing from")
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
