"""Results side by side."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from powerclip.evaluate.datasets.clip_benchmark import ALL_CAPTIONS
from powerclip.evaluate.score import POWERSET
from powerclip.evaluate.suites import PLACES

Results = Mapping[str, Mapping[str, float]]

HEADLINES = ("acc@1", "mAP", "i2t_R@1", "t2i_R@1", "macro", "text", "image", "group")
"""Metrics that stand for a task in the short table."""

FAMILIES = {
    "classification": ("acc@1",),
    "retrieval": ("i2t_R@1", "t2i_R@1"),
    "compositionality": ("macro", "text", "image", "group"),
}
"""The metrics that are averaged over the tasks of a family."""

PUBLIC = {task for of_suite in PLACES.values() for places in of_suite.values() for task, _ in places}
"""Tasks of public suites: they have averages of their own."""

Row = tuple[str, str, list[float | None]]


def averages(results: Mapping[str, Results]) -> list[Row]:
    """Unweighted means over the tasks that all models have: of public suites, which say over how much of the suite they
    are, and of the families of other tasks, where those are two or more.

    Args:
        results: metrics by model, task and name.
    """
    return _suite_averages(results) + _family_averages(results)


def _suite_averages(results: Mapping[str, Results]) -> list[Row]:
    found: list[Row] = []
    for of_suite in PLACES.values():
        for name, places in of_suite.items():
            common = [
                place for place in places if all(place[1] in tasks.get(place[0], {}) for tasks in results.values())
            ]
            if common:
                values: list[float | None] = [
                    sum(tasks[task][metric] for task, metric in common) / len(common) for tasks in results.values()
                ]
                of = "" if len(common) == len(places) else f" of {len(places)}"
                found.append((name, f"mean of {len(common)}{of}", values))
    return found


def _family_averages(results: Mapping[str, Results]) -> list[Row]:
    found: list[Row] = []
    lines = [line for line in rows(results) if line[0].removesuffix(ALL_CAPTIONS) not in PUBLIC]
    for family, names in FAMILIES.items():
        for reading, of_reading in (("", False), (", powerset score", True)):
            complete = [
                values
                for task, metric, values in lines
                if metric in names and None not in values and task.endswith(POWERSET) == of_reading
            ]
            if len(complete) > 1:
                columns = zip(*complete, strict=True)
                mean: list[float | None] = [sum(v for v in column if v is not None) / len(column) for column in columns]
                found.append((family + reading, f"mean of {len(complete)}", mean))
    return found


def rows(results: Mapping[str, Results], *, short: bool = True) -> list[Row]:
    """Task, metric and the value of each model (None where it has none), in the order the models list them.

    Args:
        results: metrics by model, task and name.
        short: the headline metrics alone.
    """
    found: dict[tuple[str, str], None] = {}
    for tasks in results.values():
        for task, metrics in tasks.items():
            for metric in metrics:
                if not short or metric in HEADLINES:
                    found[task, metric] = None
    return [(task, metric, [tasks.get(task, {}).get(metric) for tasks in results.values()]) for task, metric in found]


def best(values: list[float | None]) -> float | None:
    """The highest value where models differ; None where there is nothing to mark."""
    known = {value for value in values if value is not None}
    return max(known) if len(known) > 1 else None


def results_table(results: Mapping[str, Results], *, short: bool = True) -> Table:
    """A table for the terminal, in percent; the best value of a row is bold."""
    table = Table("task", "metric", title="zero-shot, %")
    for name in results:
        table.add_column(escape(name), justify="right")
    for task, metric, values in rows(results, short=short) + averages(results):
        top = best(values)
        cells = ["-" if v is None else f"[bold]{v:.1%}[/bold]" if v == top else f"{v:.1%}" for v in values]
        table.add_row(escape(task), escape(metric), *(cell.replace("%", "") for cell in cells))
    return table


def results_markdown(results: Mapping[str, Results], *, short: bool = True) -> str:
    """The same table as Markdown."""
    lines = [f"| task | metric | {' | '.join(map(_cell, results))} |", "| --- | --- |" + " ---: |" * len(results)]
    for task, metric, values in rows(results, short=short) + averages(results):
        top = best(values)
        cells = ["-" if v is None else f"**{100 * v:.1f}**" if v == top else f"{100 * v:.1f}" for v in values]
        lines.append(f"| {_cell(task)} | {_cell(metric)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that does not end its Markdown cell."""
    return text.replace("|", "\\|").replace("\n", " ")
