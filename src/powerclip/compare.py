"""Named configs side by side: each is trained with the same seeds and data, evaluated, and put into one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from powerclip.config import EvaluateConfig, TrainConfig
from powerclip.data.loader import open_data
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_model, read_evaluation
from powerclip.evaluate.asked import suites_asked_for
from powerclip.files import atomic_write, read_json, write_json
from powerclip.pixels import png
from powerclip.progress import print_line
from powerclip.report.plots import comparison_plot
from powerclip.report.tables import read_evaluations, results_table, seeds_table
from powerclip.runs import RunFolder
from powerclip.train import train
from powerclip.train.build import build_cache


def compare(
    configs: Mapping[str, TrainConfig],
    *,
    seeds: int,
    data: Path,
    output: Path,
    evaluation: EvaluateConfig | None = None,
    console: Console,
) -> Path | None:
    """Train and evaluate every config with every seed; write and print mean and standard deviation.

    The runs are stored in ``output/NAME-seed-N``, next to ``comparison.md``, ``.csv`` and ``.png``; N counts from the
    config's own seed. The default evaluation is on the generated scenes. A second call on the same folder skips
    finished runs and continues an interrupted one.

    Returns the Markdown table's path, or None when interrupted. PowerclipError if ``output`` holds runs of other
    settings, data or evaluation, or there is nothing to compare.
    """
    evaluation = evaluation or EvaluateConfig(suite=("scenes",))
    suites_asked_for(evaluation.suite, evaluation.data)
    if not configs or seeds < 1:
        raise PowerclipError(f"got {len(configs)} configs with {seeds} seeds to compare; name at least one of each")
    runs = {
        (name, number): output / f"{name}-seed-{config.seed + number}"
        for number in range(seeds)  # seed by seed, so that an unfinished comparison is a balanced one
        for name, config in configs.items()
    }
    seeded = {run: replace(configs[name], seed=configs[name].seed + number) for (name, number), run in runs.items()}
    for run, config in seeded.items():
        if changed := RunFolder(run).check(config, resume=True):
            raise PowerclipError(
                f"{run} was trained with other settings ({changed}); use those, or name another --output"
            )
    _claim(output, data=data, evaluation=evaluation)
    done = finish_runs(
        seeded,
        data=data,
        evaluate=lambda run: evaluate_model(str(run), evaluation),
        suites=evaluation.suite,
        console=console,
    )
    if not done:
        return None
    evaluations = read_evaluations({name: [runs[name, number] for number in range(seeds)] for name in configs})
    table = results_table(evaluations)
    console.print(table.rich())
    atomic_write(output / "comparison.csv", seeds_table(evaluations).csv())
    atomic_write(output / "comparison.png", png(comparison_plot(table)))
    path = output / "comparison.md"
    atomic_write(path, table.markdown())
    print_line(console, f"This table, all metrics and a plot: {path}, .csv, .png")
    if left_out := sorted({run.name for run in output.glob("*-seed-*") if run.is_dir()} - {run.name for run in seeded}):
        print_line(console, f"Not in it, as this command does not name them: {', '.join(left_out)}")
    return path


def finish_runs(
    configs: Mapping[Path, TrainConfig],
    *,
    data: Path | str | Sequence[Path | str],
    evaluate: Callable[[Path], object],
    suites: Sequence[str] = (),
    console: Console,
) -> bool:
    """Train and evaluate what is unfinished of the runs; return whether all are finished, False when interrupted.

    ``configs`` holds each run's settings by its folder; ``evaluate`` leaves ``evaluation.json`` in the folder that it
    is given, and is called again until that names all ``suites``. PowerclipError if a folder holds a run with other
    settings or data.
    """
    begun = [run for run in map(RunFolder, configs) if run.is_finished() or run.latest_checkpoint() is not None]
    if begun:
        provenance = open_data(data, cache=build_cache(configs[begun[0].path])).provenance
        for run in begun:
            run.check_data(provenance)
    for path, config in configs.items():
        run = RunFolder(path)
        finished = run.is_finished() and run.model.is_dir()
        unfinished = bool(run.check(config, resume=True)) or not finished
        if unfinished and train(config, data=data, output=path, resume=True, look=False).interrupted:
            print_line(console, "Run the same command to continue.")
            return False
        if not _is_evaluated(run, suites):
            evaluate(path)
    return True


def _is_evaluated(run: RunFolder, suites: Sequence[str]) -> bool:
    """Whether a run has all results that were asked for, and they are newer than its training."""
    found = read_evaluation(run.path)
    if found is None or found.pending or not set(suites) <= set(found.suite.split()):
        return False
    return run.evaluation_file.stat().st_mtime_ns >= run.status_file.stat().st_mtime_ns


def _claim(output: Path, *, data: Path, evaluation: EvaluateConfig) -> None:
    """Record what the folder's runs have in common; refuse a folder made with something else."""
    suite, shards = " ".join(evaluation.suite), evaluation.data and str(evaluation.data)
    plan: dict[str, Any] = {"suite": suite, "data": shards, "size": evaluation.size}
    if evaluation.scores != ("global",):
        plan |= {"scores": list(evaluation.scores), "regions": evaluation.regions}
    settings = {"data": str(data), "evaluation": plan}
    path = output / "comparison.json"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    elif _resolved(before := read_json(path)) != _resolved(settings):
        raise PowerclipError(f"{output} compares runs on {before}, not on {settings}; name another --output")


def _resolved(settings: Any) -> Any:
    """A folder's record with its paths in one spelling."""
    try:
        plan = settings["evaluation"]
        shards = plan["data"] and str(Path(plan["data"]).resolve())
        return {**settings, "data": str(Path(settings["data"]).resolve()), "evaluation": {**plan, "data": shards}}
    except (KeyError, TypeError):
        return settings
