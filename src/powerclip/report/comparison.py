"""Several objectives with several seeds each: mean and standard deviation, as a table and as a plot."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from powerclip.report.tables import Results, averages, rows


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One metric of one objective over its seeds."""

    values: tuple[float, ...]
    """One value a seed; at least one."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """In percent: "17.3 ± 0.8"."""
        if self.deviation is None:
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


Line = tuple[str, str, list[Spread | None]]


def spread_rows(results: Mapping[str, Sequence[Results]], *, short: bool = True) -> list[Line]:
    """Task, metric and each objective's spread over its seeds, with the averages of task families behind.

    A metric that one of an objective's seeds lacks is None: a mean over fewer seeds would not be comparable.

    Args:
        results: metrics by task and name of every seed, by objective.
        short: the headline metrics alone.
    """
    single = {f"{name}\0{number}": seed for name, seeds in results.items() for number, seed in enumerate(seeds)}
    lines: list[Line] = []
    for task, metric, values in rows(single, short=short) + averages(single):
        of_seed = dict(zip(single, values, strict=True))
        spreads: list[Spread | None] = []
        for name, seeds in results.items():
            known = [v for number in range(len(seeds)) if (v := of_seed[f"{name}\0{number}"]) is not None]
            spreads.append(Spread(values=tuple(known)) if known and len(known) == len(seeds) else None)
        lines.append((task, metric, spreads))
    return lines


def comparison_table(results: Mapping[str, Sequence[Results]]) -> Table:
    """For the terminal: mean ± standard deviation in percent; the highest mean of a row is bold."""
    table = Table("task", "metric", title=_title(results))
    for name in results:
        table.add_column(escape(name), justify="right")
    for task, metric, spreads in spread_rows(results):
        top = _top(spreads)
        cells = ["-" if s is None else f"[bold]{s}[/bold]" if s.mean == top else str(s) for s in spreads]
        table.add_row(escape(task), escape(metric), *cells)
    return table


def comparison_markdown(results: Mapping[str, Sequence[Results]]) -> str:
    """The same table as Markdown."""
    lines = [_title(results) + ".", "", f"| task | metric | {' | '.join(results)} |"]
    lines.append("| --- | --- |" + " ---: |" * len(results))
    for task, metric, spreads in spread_rows(results):
        top = _top(spreads)
        cells = ["-" if s is None else f"**{s}**" if s.mean == top else str(s) for s in spreads]
        lines.append(f"| {task} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comparison_csv(results: Mapping[str, Sequence[Results]]) -> str:
    """Every metric, unrounded: one line a task, metric and objective, with the mean, the deviation and every seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = max(map(len, results.values()))
    writer.writerow(["task", "metric", "objective", "mean", "standard_deviation", *(f"run_{i}" for i in range(seeds))])
    for task, metric, spreads in spread_rows(results, short=False):
        for name, spread in zip(results, spreads, strict=True):
            if spread is not None:
                deviation = "" if spread.deviation is None else spread.deviation
                writer.writerow([task, metric, name, spread.mean, deviation, *spread.values])
    return text.getvalue()


def comparison_plot(results: Mapping[str, Sequence[Results]]) -> Figure:
    """Headline metrics side by side: a bar at the mean, a whisker of one standard deviation, a dot a seed."""
    lines = spread_rows(results)
    figure = Figure(figsize=(max(6.0, 0.9 * len(lines) + 2), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for number, name in enumerate(results):
        for at, (_task, _metric, spreads) in enumerate(lines):
            spread = spreads[number]
            if spread is None:
                continue
            x = at + (number - (len(results) - 1) / 2) * width
            axes.bar(
                x,
                100 * spread.mean,
                0.92 * width,
                yerr=None if spread.deviation is None else 100 * spread.deviation,
                color=f"C{number}",
                alpha=0.75,
                label=name if at == 0 else None,
                error_kw={"elinewidth": 1, "capsize": 2},
            )
            axes.plot([x] * len(spread.values), [100 * v for v in spread.values], "k.", markersize=3)
    axes.set_xticks(range(len(lines)), [f"{task}\n{metric}" for task, metric, _ in lines], rotation=40, ha="right")
    axes.tick_params(labelsize=8)
    axes.set_ylabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=len(results), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _top(spreads: Sequence[Spread | None]) -> float | None:
    """The highest mean where objectives differ; None where there is nothing to mark."""
    means = {s.mean for s in spreads if s is not None}
    return max(means) if len(means) > 1 else None


def _title(results: Mapping[str, Sequence[Results]]) -> str:
    counts = sorted({len(seeds) for seeds in results.values()})
    seeds = (
        f"{counts[0]} seed{'s' if counts[0] != 1 else ''}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]} seeds"
    )
    spread = ", mean ± standard deviation" if counts[-1] > 1 else ""
    return f"zero-shot, %, {seeds} each{spread}"
