"""Objectives side by side: every one trained with the same seeds, data and steps, evaluated, and put into one table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from powerclip.config import Objective, TrainConfig, load_config
from powerclip.errors import PowerclipError
from powerclip.evaluate.run import evaluate_model
from powerclip.report.comparison import comparison_csv, comparison_markdown, comparison_plot, comparison_table
from powerclip.report.plots import png
from powerclip.runs import RunFolder
from powerclip.train import train

SETTINGS = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How every run of a comparison is evaluated."""

    suite: str | None = None
    """As in ``powerclip evaluate``; by default by ``data``."""
    data: Path | None = None
    """Data of the suite."""
    size: int = 400
    """Images of each generated task."""


def compare(
    config: TrainConfig,
    *,
    objectives: Sequence[Objective],
    seeds: int,
    data: Path,
    output: Path,
    evaluation: EvaluationPlan | None = None,
    console: Console,
) -> Path | None:
    """Train and evaluate every objective with every seed; write and print mean and standard deviation.

    The runs lie in ``output/OBJECTIVE-seed-N``; run again on the same folder, finished ones are skipped and an
    interrupted one goes on. Beside them stand ``comparison.md``, ``.csv`` and ``.png``.

    Args:
        config: settings of every run; its objective's name and its seed are replaced.
        objectives: losses to compare; each is trained with its own settings in ``config.objective``.
        seeds: seeds of each, from ``config.seed`` on.
        data: shards to train on.
        output: folder of the comparison.
        evaluation: how to evaluate; the generated scenes by default.
        console: where the table goes.

    Returns:
        The Markdown table's path, or None when interrupted.

    Raises:
        PowerclipError: ``output`` holds runs of other settings, data or evaluation; or nothing is to be compared.
    """
    evaluation = evaluation or EvaluationPlan(suite="scenes")
    if not objectives or seeds < 1 or len(set(objectives)) < len(objectives):
        raise PowerclipError(
            f"objectives are {' '.join(objectives) or '(none)'} with {seeds} seeds; name each once, with 1 or more seeds"
        )
    _claim(output, data=data, evaluation=evaluation)
    runs: dict[str, list[Path]] = {name: [] for name in objectives}
    for seed in range(config.seed, config.seed + seeds):
        for name in objectives:  # seed by seed, so that an unfinished comparison is a balanced one
            run = output / f"{name}-seed-{seed}"
            objective = dataclasses.replace(config.objective, name=name)
            wanted = dataclasses.replace(config, objective=objective, seed=seed)
            if not _finish(run, wanted, data=data, evaluation=evaluation):
                console.print("Run the same command to go on.", highlight=False)
                return None
            runs[name].append(run)
    results = {name: [RunFolder(run).results() for run in of_seeds] for name, of_seeds in runs.items()}
    console.print(comparison_table(results))
    (output / "comparison.csv").write_text(comparison_csv(results), encoding="utf-8")
    (output / "comparison.png").write_bytes(png(comparison_plot(results)))
    table = output / "comparison.md"
    table.write_text(comparison_markdown(results), encoding="utf-8")
    console.print(f"This table, all metrics and a plot: {table}, .csv, .png", soft_wrap=True, highlight=False)
    return table


def _claim(output: Path, *, data: Path, evaluation: EvaluationPlan) -> None:
    """Note what the folder's runs have in common; refuse a folder made with something else."""
    settings: dict[str, Any] = {"data": str(data), "evaluation": dataclasses.asdict(evaluation)}
    settings = json.loads(json.dumps(settings, default=str))
    path = output / SETTINGS
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != settings:
            raise PowerclipError(f"{output} compares runs on {before}, asked for {settings}; name another --output")
        return
    output.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _finish(run: Path, config: TrainConfig, *, data: Path, evaluation: EvaluationPlan) -> bool:
    """Bring a run to its evaluation, from wherever it stands; False when it was interrupted."""
    if RunFolder(run).results():
        if load_config(run / "config.yaml") != config:
            raise PowerclipError(f"{run} was trained with other settings; use those, or name another --output")
        return True
    if train(config, data=data, output=run, resume=True).interrupted:
        return False
    evaluate_model(str(run), **vars(evaluation))
    return True
