"""Tables of results: one value that is shown in the terminal, as Markdown, as CSV and as HTML."""

from __future__ import annotations

import csv
import io
import re
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.text import Text

from powerclip.evaluate import Evaluation, read_evaluation
from powerclip.evaluate.results import EARLIER
from powerclip.evaluate.suites import HEADLINES
from powerclip.files import atomic_write

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""The templates of this folder; whatever they are given is escaped."""

BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that reorder the text around them."""

FORMULA_STARTS = tuple("=+-@\uff0b\uff0d\uff1d\uff20")
"""Characters that make spreadsheets read a cell as a formula; the last four are the full-width forms."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One metric over the seeds of an objective."""

    values: tuple[float, ...]
    """One value per seed, at least one."""

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


Cell = str | float | Spread | None
"""Text, a number (shown in percent), a number per seed (shown as mean and deviation), or nothing (shown as "-")."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text and numbers. Where the numbers of a row differ, the highest is bold.

    No text can change the form of the output: it is escaped, and control characters are replaced.
    """

    columns: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[Cell, ...], ...]
    """As many cells each as there are columns."""
    title: str = ""
    """Shown above the table."""

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(title=Text(printable(self.title)) if self.title else None)
        for column, is_number in zip(self.columns, self._numeric(), strict=True):
            table.add_column(Text(printable(column)), justify="right" if is_number else "left")
        for row in self.rows:
            table.add_row(*(Text(_shown(cell), style="bold" if is_best else "") for cell, is_best in _marked(row)))
        return table

    def markdown(self) -> str:
        """As a GitHub-flavoured Markdown table, under the title."""
        lines = [f"{_markdown(self.title)}.", ""] if self.title else []
        lines.append(f"| {' | '.join(map(_markdown, self.columns))} |")
        lines.append(f"| {' | '.join('---:' if is_number else '---' for is_number in self._numeric())} |")
        for row in self.rows:
            cells = [f"**{_markdown(cell)}**" if is_best else _markdown(cell) for cell, is_best in _marked(row)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """As CSV, without the title: numbers unrounded and not in percent, a mean for several seeds.

        Text that a spreadsheet would read as a formula gets an apostrophe in front.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([[_csv(cell) for cell in row] for row in (self.columns, *self.rows)])
        return text.getvalue()

    def html(self) -> Markup:
        """As a ``<table>`` element, without the title."""
        template = TEMPLATES.get_template("table.html.jinja")
        rows = [[(_shown(cell), is_best) for cell, is_best in _marked(row)] for row in self.rows]
        columns = [*zip(map(printable, self.columns), self._numeric(), strict=True)]
        return Markup(template.render(columns=columns, rows=rows))

    def _numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers, or nothing, in all rows."""
        return [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]


def read_evaluations(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[Evaluation]]:
    """The evaluations in run folders by name, as the tables take them; a run without one is left out."""
    return {name: [found for run in of_name if (found := read_evaluation(run))] for name, of_name in runs.items()}


def results_table(results: Mapping[str, Sequence[Evaluation]]) -> Table:
    """The headline metrics and the averages of several models, as mean and standard deviation over their seeds.

    Args:
        results: the evaluation of each seed, by model.
    """
    return Table(columns=("task", "metric", *results), rows=tuple(_rows(results)), title=_title(results))


def seeds_table(results: Mapping[str, Sequence[Evaluation]]) -> Table:
    """Every metric, with one row per task, metric and model: the mean, the deviation and each seed. Made for CSV.

    Args:
        results: the evaluation of each seed, by model.
    """
    seeds = max(map(len, results.values()))
    rows: list[tuple[Cell, ...]] = []
    for task, metric, *spreads in _rows(results, short=False):
        for name, spread in zip(results, spreads, strict=True):
            if isinstance(spread, Spread):
                missing = (None,) * (seeds - len(spread.values))
                rows.append((task, metric, name, spread.mean, spread.deviation, *spread.values, *missing))
    columns = ("task", "metric", "objective", "mean", "standard_deviation", *(f"run_{i}" for i in range(seeds)))
    return Table(columns=columns, rows=tuple(rows))


def metrics_table(evaluation: Evaluation) -> Table:
    """Every metric and average of one model, and what is absent. Made for CSV."""
    rows: list[tuple[Cell, ...]] = [
        (task, metric, value) for task, metrics in evaluation.tasks.items() for metric, value in metrics.items()
    ]
    rows += [
        (label, f"mean of {average.measured} of {average.expected}", average.value)
        for label, average in evaluation.averages.items()
    ]
    rows += [(name, "absent", None) for name in evaluation.absent]
    return Table(columns=("task", "metric", "value"), rows=tuple(rows))


def absent_note(evaluation: Evaluation) -> str:
    """What is absent and where to get it, one line each; empty if nothing is."""
    return "".join(f"absent: {printable(name)}: {printable(url)}\n" for name, url in evaluation.absent.items())


def write_tables(folder: Path, name: str, evaluation: Evaluation) -> Table:
    """Write ``evaluation.md``, the table that is returned, and ``evaluation.csv``, every metric unrounded."""
    table = results_table({name: [evaluation]})
    note = absent_note(evaluation).replace("absent:", "- absent:")
    atomic_write(folder / "evaluation.md", table.markdown() + (f"\n{note}" if note else ""))
    atomic_write(folder / "evaluation.csv", metrics_table(evaluation).csv())
    return table


def printable(text: str) -> str:
    """A text without line breaks and control characters, which could act on a terminal or reorder what is shown."""
    return "".join(
        " " if c.isspace() else "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in BIDI_CONTROLS else c
        for c in text
    )


def _rows(results: Mapping[str, Sequence[Evaluation]], *, short: bool = True) -> list[tuple[Cell, ...]]:
    """Task, metric and each model's spread over its seeds; then the averages.

    A metric that a seed of a model lacks is None for that model: a mean over fewer seeds would not be comparable.
    Results on different data, and averages over different results, have rows of their own for the same reason.
    """
    origins = [seed.measured_on for seeds in results.values() for seed in seeds]
    known = {task: origin.fingerprint for of_seed in reversed(origins) for task, origin in of_seed.items()}
    values = {name: [_values(seed, known, short=short) for seed in seeds] for name, seeds in results.items()}
    keys = dict.fromkeys(key for seeds in values.values() for seed in seeds for key in seed)
    rows: list[tuple[Cell, ...]] = []
    for key in sorted(keys, key=lambda key: isinstance(key[2], tuple)):
        task, metric, data = key
        ambiguous = isinstance(data, str) and any(other[:2] == key[:2] and other != key for other in keys)
        spreads = (_spread([seed.get(key) for seed in seeds]) for seeds in values.values())
        rows.append((f"{task}{EARLIER}{data[:8]}" if ambiguous else task, metric, *spreads))
    return rows


Key = tuple[str, str, str | tuple[tuple[str, str, str], ...]]
"""Task, metric and fingerprint of the data; or label, coverage, and all that an average is over."""


def _values(evaluation: Evaluation, known: Mapping[str, str], *, short: bool) -> dict[Key, float]:
    """The metrics and averages of one model.

    Args:
        evaluation: its results.
        known: the fingerprint of each task's data, for results of earlier versions that do not name them.
        short: the headline metrics only.
    """
    data = {task: known.get(task, "") for task in evaluation.tasks}
    data |= {task: origin.fingerprint for task, origin in evaluation.measured_on.items()}
    values: dict[Key, float] = {
        (task, metric, data[task]): value
        for task, metrics in evaluation.tasks.items()
        for metric, value in metrics.items()
        if not short or metric in HEADLINES
    }
    for label, average in evaluation.averages.items():
        if average.value is not None:
            of = f" of {average.expected}" if average.measured < average.expected else ""
            over = tuple((task, metric, data.get(task, "")) for task, metric in average.over)
            values[label, f"mean of {average.measured}{of}", over] = average.value
    return values


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = tuple(value for value in values if value is not None)
    return Spread(values=known) if known and len(known) == len(values) else None


def _title(results: Mapping[str, Sequence[Evaluation]]) -> str:
    counts = sorted({len(seeds) for seeds in results.values()})
    if counts[-1:] <= [1]:
        return "zero-shot, %"
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"zero-shot, %, {seeds} seeds each, mean ± standard deviation"


def _marked(row: Sequence[Cell]) -> list[tuple[Cell, bool]]:
    """Each cell of a row, and whether it is the highest of numbers that differ."""
    values = [cell.mean if isinstance(cell, Spread) else cell for cell in row]
    numbers = {value for value in values if isinstance(value, int | float)}
    top = max(numbers) if len(numbers) > 1 else None
    return [(cell, top is not None and value == top) for cell, value in zip(row, values, strict=True)]


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int | float):
        return f"{100 * cell:.1f}"
    return printable(cell) if isinstance(cell, str) else str(cell)


def _markdown(cell: Cell) -> str:
    return re.sub(r"([\\|<`*\[])", r"\\\1", _shown(cell))


def _csv(cell: Cell) -> str | float:
    if isinstance(cell, str):
        text = printable(cell)
        return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text
    if isinstance(cell, Spread):
        return cell.mean
    return "" if cell is None else cell
