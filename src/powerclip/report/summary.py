"""What stands on top of a report: what was trained, on what, how long, and which run is ahead."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from powerclip.config import read_yaml
from powerclip.errors import printable
from powerclip.evaluate import Evaluation
from powerclip.model import PowerCLIP
from powerclip.report.plots import is_number
from powerclip.report.tables import Cell, Spread, Table, results_table
from powerclip.runs import RunFolder, read_metrics

BEYOND = 2.0
"""Standard errors of a difference from which a run counts as ahead beyond the sampling error."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """By how much one run is ahead of the next one in a metric."""

    run: str
    difference: float
    """Above 0."""
    error: float | None
    """Standard error of the difference, taking the two as independent: never too small where both saw the same items
    and agree on some. None if an error is not known, or 0: items that all came out alike say nothing of others."""

    @property
    def is_beyond(self) -> bool:
        """Whether the lead is beyond the sampling error."""
        return self.error is not None and self.difference > BEYOND * self.error

    def __str__(self) -> str:
        """In percentage points: "clip +3.1 ± 1.0, beyond the error"."""
        shown = f"{printable(self.run)} +{100 * self.difference:.1f}"
        if self.error is None:
            return shown
        return f"{shown} ± {100 * self.error:.1f}, {'beyond' if self.is_beyond else 'within'} the error"


def lead_of(row: Mapping[str, Cell]) -> Lead | None:
    """Who is ahead in a metric of two runs or more; None if nobody is."""
    known = {name: cell for name, cell in row.items() if isinstance(cell, Spread)}
    ranked = sorted(known, key=lambda name: -known[name].mean)[:2]
    if len(ranked) < 2 or not known[ranked[0]].mean > known[ranked[1]].mean:
        return None
    first, second = (known[name] for name in ranked)
    ours, theirs = first.standard_error, second.standard_error
    error = math.hypot(ours, theirs) if ours and theirs else None
    return Lead(run=ranked[0], difference=first.mean - second.mean, error=error)


def with_leads(table: Table) -> Table:
    """A table of results with who is ahead in each row, if it is of several runs."""
    runs = table.columns[2:]
    if len(runs) < 2:
        return table
    leads = [lead_of(dict(zip(runs, row[2:], strict=True))) for row in table.rows]
    rows = tuple((*row, str(lead or "-")) for row, lead in zip(table.rows, leads, strict=True))
    return replace(table, columns=(*table.columns, "ahead"), rows=rows)


def headlines(results: Mapping[str, Sequence[Evaluation]]) -> Table:
    """The averages that all runs have over the same results, then the headline metrics that are in none of them."""
    table = results_table(results)
    shared = [row for row in table.rows if _is_average(row) and None not in row]
    averaged = {
        (one.label(task), metric)
        for seeds in results.values()
        for one in seeds
        for label, average in one.averages.items()
        if any(row[0] == label for row in shared)
        for task, metric in average.over
    }
    others = [row for row in table.rows if not _is_average(row) and row[:2] not in averaged]
    return replace(table, rows=(*shared, *others))


def _is_average(row: Sequence[Cell]) -> bool:
    return str(row[1]).startswith("mean of")


def verdicts(table: Table) -> list[str]:
    """For each run of a table of headline results, in how many it is ahead of all others,
    and beyond the sampling error."""
    runs = table.columns[2:]
    compared = [row for row in table.rows if sum(c is not None for c in row[2:]) > 1]
    if not compared:
        return []
    leads = [lead_of(dict(zip(runs, row[2:], strict=True))) for row in compared]
    ahead = {run: [lead for lead in leads if lead and lead.run == run] for run in runs}
    return [
        f"{run} is ahead in {len(own)} of {len(compared)} headline results, "
        f"in {sum(lead.is_beyond for lead in own)} of them beyond the sampling error."
        for run, own in sorted(ahead.items(), key=lambda item: -len(item[1]))
    ]


def suite_tables(results: Mapping[str, Sequence[Evaluation]]) -> dict[str, Table]:
    """Every metric of every task, a table for each suite."""
    suites = {
        name: one.measured_on[name].suite if name in one.measured_on else "of an earlier version"
        for seeds in results.values()
        for one in seeds
        for name in one.tasks
    }
    found = {}
    for suite in dict.fromkeys(suites.values()):
        own = {
            run: [
                replace(one, tasks={n: m for n, m in one.tasks.items() if suites[n] == suite}, averages={})
                for one in seeds
            ]
            for run, seeds in results.items()
        }
        found[suite] = with_leads(results_table(own, ()))
    return found


def facts(
    runs: Mapping[str, Path], metrics: Mapping[str, Sequence[Mapping[str, Any]]], models: Mapping[str, PowerCLIP]
) -> Table:
    """What was trained, on what and how long: a column for each run."""
    columns = [_facts_of(RunFolder(run), metrics.get(name, ()), models.get(name)) for name, run in runs.items()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = tuple((name, *(column.get(name, "-") for column in columns)) for name in names)
    return Table(columns=("run", *runs), rows=rows)


def _facts_of(run: RunFolder, lines: Sequence[Mapping[str, Any]], model: PowerCLIP | None) -> dict[str, str]:
    settings, data = read_settings(run.config_file), None
    with suppress(OSError, ValueError):
        data = run.data()
    found = {
        "objective": settings.get("objective.name", "-"),
        "model": settings.get("model.name", "-"),
        "started from": settings.get("model.pretrained", "-").replace("None", "scratch"),
    }
    if model is not None:
        found["parameters"] = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
    if data is not None:
        found["data"] = f"{data.samples:,} pairs: {', '.join(data.sources)}"
    numbers = [line for line in lines if is_number(line.get("samples_seen")) and is_number(line.get("loss"))]
    wanted = None if run.is_finished() else run.status().get("steps")
    if lines or wanted:
        of = f" of {wanted:,}: not finished" if is_number(wanted) else ""
        found["steps"] = f"{lines[-1]['step'] if lines else 0:,}{of}"
    if bad := {line["step"] for line in read_metrics(run.bad_batches_file)}:
        found["steps skipped, not finite"] = f"{len(bad):,}"
    if numbers:
        seen = numbers[-1]["samples_seen"]
        passes = f", {seen / data.samples:.3g} times the data" if data is not None and data.samples else ""
        found["samples seen"] = f"{seen:,}{passes}"
        if seconds := _seconds(numbers):
            found["time in training steps"] = (
                f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
            )
        found["last loss"] = f"{numbers[-1]['loss']:.3f}"
    return found


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """From the speed that is logged with each count of samples; 0 if it is not."""
    pairs = pairwise([{"samples_seen": 0}, *lines])
    return math.fsum(
        (after["samples_seen"] - before["samples_seen"]) / after["samples_per_s"]
        for before, after in pairs
        if is_number(after.get("samples_per_s")) and after["samples_per_s"] > 0
    )


def read_settings(path: Path) -> dict[str, str]:
    """A run's settings by dotted name; empty if the file is missing or not a mapping."""
    with suppress(ValueError):
        if isinstance(value := read_yaml(path), dict):
            return _flat(value)
    return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        is_group = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": str(value)}
    return flat
