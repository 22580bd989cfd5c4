"""Tables of results: one value that is shown in the terminal, as Markdown, as CSV and as HTML."""

import csv
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.text import Text

from powerclip.errors import printable
from powerclip.evaluate import Estimate, Evaluation, read_evaluation
from powerclip.evaluate.averages import HEADLINES, Average
from powerclip.evaluate.datasets.linear_probe import PROBE
from powerclip.evaluate.results import EARLIER
from powerclip.evaluate.score import CUT
from powerclip.files import atomic_write

FOLDER = Path(__file__).parent
"""Where the report's templates are."""

TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


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

    @property
    def standard_error(self) -> float | None:
        """The sampling error of one seed's value, the mean over the seeds,
        which see the same items; None if unknown."""
        return self._known("standard_error")

    @property
    def chance(self) -> float | None:
        """The mean over the seeds of what guessing would give; None if it is not known."""
        return self._known("chance")

    @property
    def n(self) -> float | None:
        """Items that each value is a mean over; None if it is not known."""
        return self._known("n")

    def __str__(self) -> str:
        """In percent: "17.3 ± 0.8 (12.5)", the deviation or, for one seed, a sampling error above 0, and the chance."""
        error = (self.standard_error or None) if self.deviation is None else self.deviation
        shown = f"{100 * self.mean:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
        return shown + ("" if self.chance is None else f" ({100 * self.chance:.1f})")

    def _known(self, detail: str) -> float | None:
        details = [getattr(value, detail, None) for value in self.values]
        known = [found for found in details if found is not None]
        return statistics.fmean(known) if len(known) == len(details) else None


DETAILS = ("n", "standard_error", "chance")
"""What is known of a metric that is an ``Estimate``, as columns."""

Cell = str | float | Spread | None
"""Text, a number (shown in percent), a number per seed (shown as mean and deviation), or nothing (shown as "-")."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text and numbers. The highest of a row is bold if it is above all others by more than the error.

    No text can change the form of the output: it is escaped, and control characters are replaced.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """As many cells each as there are columns."""
    title: str = ""
    """Shown above the table, except in CSV and HTML."""

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(title=Text(printable(self.title)) if self.title else None)
        for name, is_number in self._header():  # a name that is cut could be that of another task
            table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(text, style="bold" if is_best else "") for text, is_best in _shown(row)))
        return table

    def markdown(self) -> str:
        """As a GitHub-flavoured Markdown table."""
        title = f"{_escaped(printable(self.title))}.\n\n" if self.title else ""
        rows = [[_escaped(name) for name, _ in self._header()]]
        rows.append(["---:" if is_number else "---" for _, is_number in self._header()])
        for row in self.rows:
            rows.append([f"**{_escaped(text)}**" if is_best else _escaped(text) for text, is_best in _shown(row)])
        return title + "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def csv(self) -> str:
        """As CSV: numbers unrounded and not in percent, a mean for several seeds.

        Text that a spreadsheet would read as a formula gets an apostrophe in front.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([[_csv(cell) for cell in row] for row in (self.columns, *self.rows)])
        return text.getvalue()

    def html(self) -> Markup:
        """As a ``<table>`` element."""
        template = TEMPLATES.get_template("table.html.jinja")
        return Markup(template.render(columns=self._header(), rows=map(_shown, self.rows)))

    def _header(self) -> list[tuple[str, bool]]:
        """Each column's name, and whether it holds numbers, or nothing, in all rows."""
        numeric = [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        return [*zip(map(printable, self.columns), numeric, strict=True)]


def read_evaluations(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[Evaluation]]:
    """The evaluations in run folders by name, as the tables take them; a run without one is left out."""
    return {name: [found for run in of_name if (found := read_evaluation(run))] for name, of_name in runs.items()}


def results_table(results: Mapping[str, Sequence[Evaluation]], metrics: Collection[str] = HEADLINES) -> Table:
    """Metrics (all, if none is named) and averages as mean and standard deviation over seeds;
    takes each seed's, by model. The share of captions that were cut, which is no merit, is in ``notes`` alone."""
    counts = sorted({len(seeds) for seeds in results.values()})
    rows = tuple(row for row in _rows(results, metrics) if row[1] != CUT)
    spreads = [cell for row in rows for cell in row if isinstance(cell, Spread)]
    errors = [spread.standard_error for spread in spreads if spread.standard_error is not None]
    title = "zero-shot and linear probes, %" if any(PROBE in str(row[0]) for row in rows) else "zero-shot, %"
    if counts[-1:] > [1]:
        seeds = counts[0] if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        title += f", {seeds} seeds each, mean ± standard deviation"
        title += f"; sampling error of one seed up to {100 * max(errors):.1f}" if errors else ""
    elif errors:
        title += " ± sampling error"
    if any(spread.chance is not None for spread in spreads):
        title += "; in brackets: chance"
    return Table(columns=("task", "metric", *results), rows=rows, title=title)


def seeds_table(results: Mapping[str, Sequence[Evaluation]]) -> Table:
    """Every metric, a row per task, metric and model: the mean, the deviation, details and each seed. Made for CSV."""
    seeds = max(map(len, results.values()))
    rows: list[tuple[Cell, ...]] = []
    for task, metric, *spreads in _rows(results):
        for name, spread in zip(results, spreads, strict=True):
            if isinstance(spread, Spread):
                missing = (None,) * (seeds - len(spread.values))
                details = (getattr(spread, detail) for detail in DETAILS)
                rows.append((task, metric, name, spread.mean, spread.deviation, *details, *spread.values, *missing))
    summary = ("mean", "standard_deviation", *DETAILS)
    columns = ("task", "metric", "objective", *summary, *(f"run_{i}" for i in range(seeds)))
    return Table(columns=columns, rows=tuple(rows))


def metrics_table(evaluation: Evaluation) -> Table:
    """Every metric and average of one model, and what is absent. Made for CSV."""
    tasks, averages = evaluation.tasks.items(), evaluation.averages.items()
    rows: list[tuple[Cell, ...]] = [
        (evaluation.label(task), name, value, *(getattr(value, detail, None) for detail in DETAILS))
        for task, metrics in tasks
        for name, value in metrics.items()
    ]
    nothing = (None,) * len(DETAILS)
    rows += [(label, f"mean of {mean.measured} of {mean.expected}", mean.value, *nothing) for label, mean in averages]
    rows += [(name, "absent", None, *nothing) for name in evaluation.absent]
    return Table(columns=("task", "metric", "value", *DETAILS), rows=tuple(rows))


def absent_note(evaluation: Evaluation) -> str:
    """What is absent and where to get it, one line each; empty if nothing is."""
    return "".join(f"absent: {printable(name)}: {printable(url)}\n" for name, url in evaluation.absent.items())


def notes(evaluation: Evaluation) -> str:
    """What is absent, and where captions were cut at the model's context, one line each."""
    return absent_note(evaluation) + "".join(f"cut: {line}\n" for line in cut_captions(evaluation))


def cut_captions(evaluation: Evaluation) -> list[str]:
    """Of each task where captions were cut at the model's context, how many."""
    cut = {name: metrics[CUT] for name, metrics in evaluation.tasks.items() if CUT in metrics}
    return [
        f"{printable(name)}: {share:.1%} of the captions are longer than the context" for name, share in cut.items()
    ]


def write_tables(folder: Path, name: str, evaluation: Evaluation) -> None:
    """Write ``evaluation.md``, the headline metrics, and ``evaluation.csv``, every metric unrounded."""
    note = "".join(f"- {line}" for line in notes(evaluation).splitlines(keepends=True))
    markdown = results_table({name: [evaluation]}).markdown()
    atomic_write(folder / "evaluation.md", markdown + (f"\n{note}" if note else ""))
    atomic_write(folder / "evaluation.csv", metrics_table(evaluation).csv())


def _rows(results: Mapping[str, Sequence[Evaluation]], metrics: Collection[str] = ()) -> list[tuple[Cell, ...]]:
    """Task, metric (all of them by default) and each model's spread over its seeds; then the averages.

    A metric that a seed of a model lacks is None for that model: a mean over fewer seeds would not be comparable.
    Results on different data, and averages over different results, have rows of their own for the same reason.
    """
    origins = [seed.measured_on for seeds in results.values() for seed in seeds]
    known = {task: origin.fingerprint for of_seed in reversed(origins) for task, origin in of_seed.items()}
    found: dict[Key, dict[str, list[float]]] = {}
    for name, seeds in results.items():
        for seed in seeds:
            for key, value in _values(seed, known, metrics):
                found.setdefault(key, {}).setdefault(name, []).append(value)
    data_sets = Counter(key[:2] for key in found if isinstance(key[2], str))
    rows: list[tuple[Cell, ...]] = []
    for key in sorted(found, key=lambda key: isinstance(key[2], tuple)):
        task, metric, data = key
        if isinstance(data, str) and data_sets[task, metric] > 1:
            task = f"{task}{EARLIER}{data[:8]}"
        complete = {name: values for name, values in found[key].items() if len(values) == len(results[name])}
        spreads = (Spread(values=tuple(complete[name])) if name in complete else None for name in results)
        rows.append((task, metric, *spreads))
    return rows


Key = tuple[str, str, str | tuple[tuple[str, str, str], ...]]
"""Task, metric and fingerprint of the data; or label, coverage, and all that an average is over."""


def _values(evaluation: Evaluation, known: Mapping[str, str], metrics: Collection[str]) -> Iterator[tuple[Key, float]]:
    """The metrics, all of them if none is named, and the averages of one model.

    ``known`` has the fingerprint of each task's data, for results of earlier versions, which lack it.
    """
    data = {task: known.get(task, "") for task in evaluation.tasks}
    data |= {task: origin.fingerprint for task, origin in evaluation.measured_on.items()}
    for task, of_task in evaluation.tasks.items():
        label = evaluation.label(task)
        yield from (((label, name, data[task]), of_task[name]) for name in of_task if not metrics or name in metrics)
    for label, average in evaluation.averages.items():
        if average.value is not None:
            of = f" of {average.expected}" if average.measured < average.expected else ""
            over = tuple((task, metric, data.get(task, "")) for task, metric in average.over)
            yield (label, f"mean of {average.measured}{of}", over), _with_error(evaluation, average)


def _with_error(evaluation: Evaluation, average: Average) -> float:
    """An average as an estimate if its metrics are: their errors taken as equal in sign within a task,
    independent between tasks."""
    assert average.value is not None
    found = [(task, evaluation.tasks.get(task, {}).get(metric)) for task, metric in average.over]
    errors: dict[str, float] = {}
    for task, metric in found:
        if not isinstance(metric, Estimate):
            return average.value
        errors[task] = errors.get(task, 0.0) + metric.standard_error
    items = sum(metric.n for _, metric in found if isinstance(metric, Estimate))
    return Estimate(average.value, items, math.hypot(*errors.values()) / len(found))


def _shown(row: Sequence[Cell]) -> list[tuple[str, bool]]:
    """Each cell of a row as text, and whether it is above all other numbers by more than the error of the difference.

    Errors are deviations over seeds or, of one seed, sampling errors. One of 0 is none: nothing stands out beside it.
    """
    known = [_value_and_error(cell) for cell in row if isinstance(cell, int | float | Spread)]
    best, error = max(known, default=(math.nan, 0.0))
    others = [(value, its_error) for value, its_error in known if value < best]
    stands_out = bool(others) and all(best - value > math.hypot(error, its_error) for value, its_error in others)
    return [(_text(cell), stands_out and _value_and_error(cell)[0] == best) for cell in row]


def _value_and_error(cell: Cell) -> tuple[float, float]:
    """A number and its error: 0 if that is not known, infinite if it is said to be 0; NaN for what is no number."""
    if isinstance(cell, Spread):
        errors = [error for error in (cell.deviation, cell.standard_error) if error is not None]
        return cell.mean, next(filter(None, errors), math.inf if errors else 0.0)
    return (float(cell), 0.0) if isinstance(cell, int | float) else (math.nan, 0.0)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{100 * cell:.1f}" if isinstance(cell, int | float) else printable(str(cell))


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<`*\[])", r"\\\1", text)


def _csv(cell: Cell) -> str | float | None:
    if isinstance(cell, Spread):
        return cell.mean
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text
