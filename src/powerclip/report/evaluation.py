"""One model's evaluation as a table: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from powerclip.evaluate.run import Evaluation
from powerclip.report.tables import averages, rows

Line = tuple[str, str, str]


def evaluation_lines(evaluation: Evaluation) -> list[Line]:
    """Task, metric and value in percent: headline metrics, averages, and what is absent with where to get it."""
    results = {"": evaluation.tasks}
    lines = [(task, metric, _percent(values[0])) for task, metric, values in rows(results)]
    lines += [(name, metric, _percent(values[0])) for name, metric, values in averages(results)]
    return lines + [(name, "absent", f"get it: {source}") for name, source in evaluation.absent.items()]


def evaluation_table(name: str, evaluation: Evaluation) -> Table:
    """For the terminal; where to get what is absent stands in ``absent_note``, which has long lines."""
    table = Table("task", "metric", title="zero-shot, %")
    table.add_column(escape(name), justify="right")
    for task, metric, value in evaluation_lines(evaluation):
        table.add_row(escape(task), escape(metric), "-" if task in evaluation.absent else escape(value))
    return table


def absent_note(evaluation: Evaluation) -> str:
    """What is absent and where to get it, a line each; empty where nothing is."""
    return "\n".join(f"absent: {name}: {source}" for name, source in evaluation.absent.items())


def write_tables(folder: Path, name: str, evaluation: Evaluation) -> None:
    """Write ``evaluation.md``, the table, and ``evaluation.csv``, every metric unrounded."""
    lines = [f"| task | metric | {name} |", "| --- | --- | ---: |"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in evaluation_lines(evaluation)]
    (folder / "evaluation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "metric", "value"])
    for task, metrics in evaluation.tasks.items():
        writer.writerows([task, metric, value] for metric, value in metrics.items())
    for label, average in evaluation.averages.items():
        writer.writerow([label, f"mean of {average.measured} of {average.expected}", average.value])
    writer.writerows([name, "absent", ""] for name in evaluation.absent)
    (folder / "evaluation.csv").write_text(text.getvalue(), encoding="utf-8")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
