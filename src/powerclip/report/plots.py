"""Training curves as a page's script draws them, and figures of comparisons."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from powerclip.errors import printable
from powerclip.evaluate.averages import HEADLINES
from powerclip.report.tables import Cell, Spread, Table

BARS_IN_LINE = 48
"""Bars of a comparison that stand side by side: more would be too thin on a screen."""

LEGEND_COLUMNS = 5


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel of curves: up to two metrics of each run over its steps, the second one dashed."""

    title: str
    names: tuple[str, ...]
    """Names in ``metrics.jsonl``."""
    reading: str = ""
    """A sentence on how to read it."""
    limits: tuple[float, float] | None = None
    """Of the vertical axis."""
    logarithmic: bool = False
    """Whether the vertical axis is; what is not positive is left out."""

    def in_any(self, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
        """Whether a run has a number to draw."""
        return any(is_number(line.get(name)) for lines in metrics.values() for line in lines for name in self.names)


PANELS = (
    Panel(title="CLIP loss", names=("loss_clip",)),
    Panel(title="powerset alignment loss", names=("loss_powerset",)),
    Panel(title="inverse temperature", names=("logit_scale",)),
    Panel(title="samples per second", names=("samples_per_s",)),
)

SHARE = (-0.03, 1.03)

SETS = (
    "Sets of regions choose where the solid curve is high and the dashed one low; if both are near 1, the best set is "
    "all regions, and if both are near 0, it is empty."
)
SINGLE = "Where the best region alone counts, only the order of similarities matters: both may be near 1."

INSTRUMENTS = {
    "Are pairs told apart?": (
        Panel(
            title="similarities above zero",
            names=("matched_above_zero_share", "unmatched_above_zero_share"),
            limits=SHARE,
            reading="Share of region-phrase similarities above zero, of matched (solid) and unmatched pairs (dashed).",
        ),
        Panel(
            title="zero",
            names=("zero",),
            reading="What is taken off every similarity, where it is fitted or learned; it should settle.",
        ),
        Panel(
            title="score gap",
            names=("score_gap",),
            reading="Mean score of matched less that of unmatched pairs: it should rise; of a triplet loss towards the "
            "margin and above.",
        ),
    ),
    "How hard are the negatives?": (
        Panel(
            title="active hinges",
            names=("active_share_i2t", "active_share_t2i"),
            limits=SHARE,
            reading="Share of images (solid) and captions (dashed) whose hardest negative is within the margin; "
            "the rest give no gradient. It should fall; at 1 to the end, the margin may be too wide.",
        ),
        Panel(
            title="five commonest negatives",
            names=("hub_share_i2t", "hub_share_t2i"),
            limits=SHARE,
            reading="Share of images (solid) and captions (dashed) whose hardest negative is one of the five "
            "commonest. By chance it is about 0.25 in batches of 64 and 0.08 in batches of 256; far above, "
            "a few hubs are near to all.",
        ),
    ),
    "How strong is the powerset loss?": (
        Panel(
            title="ratio of gradients",
            names=("gradient_ratio",),
            logarithmic=True,
            reading="Gradient of the weighted powerset loss relative to that of CLIP's loss. Above 1, it decides where "
            "the towers go; far below 0.1, it hardly trains them.",
        ),
        Panel(title="lambda", names=("powerset_weight",), reading="Weight of the powerset loss as it stands."),
        Panel(title="zeta", names=("zeta",), reading="Calibrated zeta as it stands; it should settle."),
    ),
}
"""Panels by the question that they answer, of runs with the powerset loss."""


def instruments(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], subsets: Mapping[str, str]
) -> dict[str, tuple[Panel, ...]]:
    """``INSTRUMENTS`` with how to read them for the subsets ("all", "single") that the runs which log them score."""
    (question, (above, *others)), *rest = INSTRUMENTS.items()
    scored = {subsets.get(name, "all") for name, lines in metrics.items() if above.in_any({name: lines})}
    advice = [text for name, text in (("all", SETS), ("single", SINGLE)) if name in scored]
    return {question: (replace(above, reading=" ".join([above.reading, *advice])), *others), **dict(rest)}


BINS = 120
"""Points of a curve on a page at most."""

STYLE = {
    "font.size": 8,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1,
}


def evaluation_panels(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """A panel for the mean, and for each headline metric of each task, that was measured during training."""
    names = {name for lines in metrics.values() for line in lines for name in line if name.startswith("eval/")}
    headlines = sorted(name for name in names if name.rpartition("/")[2] in HEADLINES)
    shown = [*(["eval/mean"] if "eval/mean" in names else []), *headlines]
    return [Panel(title=name.removeprefix("eval/").replace("/", " "), names=(name,)) for name in shown]


def series(metrics: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """The panels as a page's script draws them: for each line its run's number and up to ``BINS`` points.

    A point is [last step, mean, lowest, highest] of consecutive values; what is not a number is left out.
    """
    return [
        {
            "title": panel.title,
            "limits": panel.limits,
            "logarithmic": panel.logarithmic,
            "lines": [
                {"run": number, "dashed": name != panel.names[0], "points": points}
                for number, lines in enumerate(metrics.values())
                for name in panel.names
                if (points := _binned(points_of(lines, name, positive=panel.logarithmic)))
            ],
        }
        for panel in panels
    ]


def _binned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    width = -(-len(points) // BINS)
    parts = (points[start : start + width] for start in range(0, len(points), width or 1))
    found = [(part[-1][0], [value for _, value in part]) for part in parts]
    return [[step, *(float(f"{f(values):.5g}") for f in (statistics.fmean, min, max))] for step, values in found]


def points_of(lines: Sequence[Mapping[str, Any]], name: str, *, positive: bool) -> list[tuple[float, float]]:
    """Step and value where a metric is a number; only above 0 if it is to be ``positive``."""
    pairs: list[tuple[Any, Any]] = [(line["step"], line.get(name)) for line in lines]
    return [pair for pair in pairs if all(map(is_number, pair)) and (pair[1] > 0 or not positive)]


@rc_context(STYLE)
def comparison_plot(table: Table) -> Figure:
    """The rows of a table of results side by side: a bar at the mean, a whisker of one deviation, a dot per seed.

    They are spread over as many lines as have ``BARS_IN_LINE`` bars each, or fewer.
    """
    names = table.columns[2:]
    count = max(1, math.ceil(len(table.rows) * len(names) / BARS_IN_LINE))
    longest = math.ceil(len(table.rows) / count)
    figure = Figure(figsize=(max(7.0, 0.9 * longest + 2), 4.2 * count), layout="constrained")
    for line, axes in enumerate(figure.subplots(count, squeeze=False, sharey=True).flat):
        _bars(axes, table.rows[line * longest : (line + 1) * longest], across=longest)
        axes.set_ylabel("%")
    columns = min(len(names), LEGEND_COLUMNS)
    legend(figure.axes[0], names, linewidth=5, alpha=0.75, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _bars(axes: Axes, rows: Sequence[Sequence[Cell]], *, across: int) -> None:
    """Rows of a table as groups of bars, in the width of ``across`` groups."""
    for position, row in enumerate(rows):
        width = 0.8 / (len(row) - 2)
        for number, spread in enumerate(row[2:]):
            if isinstance(spread, Spread):
                x = position - 0.4 + (number + 0.5) * width
                whisker = None if spread.deviation is None else 100 * spread.deviation
                axes.bar(x, 100 * spread.mean, 0.92 * width, yerr=whisker, capsize=2, color=f"C{number}", alpha=0.75)
                axes.plot([x] * len(spread.values), [100 * value for value in spread.values], "k.", markersize=3)
    labels = ["\n".join(printable(str(cell)) for cell in row[:2]) for row in rows]
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_xlim(-0.6, across - 0.4)


def legend(axes: Axes, names: Iterable[str], *, linewidth: float, alpha: float = 1.0, **options: Any) -> None:
    """Name the colours C0, C1, ... (lines' own labels may not begin with "_")."""
    shown = [printable(name) for name in names]
    keys = [Line2D([], [], color=f"C{number}", linewidth=linewidth, alpha=alpha) for number in range(len(shown))]
    axes.legend(keys, shown, **options)


def is_number(value: object) -> bool:
    """Whether a value from a JSON file is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
