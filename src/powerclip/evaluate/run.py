"""Evaluate a saved model on suites: load, find and read the data sets, run their tasks, write the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from powerclip.config import Score, ScoreRegions
from powerclip.distributed import process_group, rank
from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.own_shards import retrieval_from_shards
from powerclip.evaluate.score import evaluate_tasks
from powerclip.evaluate.suites import SUITES, Average, averages
from powerclip.files import read_json
from powerclip.model import load
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Task

Results = dict[str, dict[str, float]]

SCENES_SEED = 20_000
"""Seed of the evaluation scenes: the same for every model, apart from the training scenes by their split."""

OWN_SUITES = ("scenes", "pairs")
"""Suites that need no public data: generated tasks, and retrieval among the pairs of one's own shards."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of one model on one or more suites."""

    suite: str
    """Names of the suites, with spaces between."""
    tasks: Results
    """Metrics by task and name, each between 0 and 1."""
    averages: Mapping[str, Average] = field(default_factory=dict)
    """Averages by label, of the public suites and of the families of other tasks; each says what it is over."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Data sets that were asked for and are not there, and where to get them."""

    def to_json(self) -> dict[str, Any]:
        """The content of ``evaluation.json``."""
        return asdict(self)


def read_evaluation(folder: Path) -> Evaluation | None:
    """The results in a folder's ``evaluation.json``; None if there are none or the file has another form.

    Averages that a file of an earlier version lacks, or does not say what they are over, are computed.
    """
    try:
        value = read_json(folder / "evaluation.json")
        tasks = {
            task: {name: float(number) for name, number in metrics.items() if number is not None}
            for task, metrics in value["tasks"].items()
        }
        suite, stored = str(value.get("suite", "")), value.get("averages") or {}
        means = {label: _average(mean) for label, mean in stored.items() if "over" in mean}
        means = averages(suite.split(), tasks) | means
        absent = {str(name): str(source) for name, source in (value.get("absent") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Evaluation(suite=suite, tasks=tasks, averages=means, absent=absent) if tasks else None


def _average(value: Mapping[str, Any]) -> Average:
    number = value["value"]
    return Average(
        value=None if number is None else float(number),
        measured=int(value["measured"]),
        expected=int(value["expected"]),
        over=tuple((str(task), str(metric)) for task, metric in value["over"]),
    )


def evaluate_model(
    model: str,
    *,
    suite: str | Sequence[str] | None = None,
    data: Path | None = None,
    size: int = 400,
    batch_size: int = 256,
    workers: int = 0,
    scores: Sequence[Score] = ("global",),
    regions: ScoreRegions = "grid",
    device: str = "auto",
    output: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate a run folder, a model folder or a hub id zero-shot.

    Started by torchrun, the processes share the work and get equal results; the first one writes them:
    ``evaluation/TASK.json`` for each task and ``evaluation.json`` for all.

    Args:
        model: what ``powerclip.load`` takes.
        suite: "scenes" (generated tasks), "pairs" (retrieval among the pairs of the shards ``data``), any of
            ``SUITES`` (public data sets, each in its folder under ``data``), or several; by default "pairs" where
            ``data`` is given, else "scenes".
        data: what the suite needs.
        size: images per generated task.
        batch_size: images or captions encoded at once.
        workers: threads that open and preprocess images beside the model.
        scores: how images and texts are compared, as ``evaluate_tasks`` has it; both beside each other if both are named.
        regions: of the powerset score, as ``evaluate_tasks`` has it.
        device: "auto", "cpu", "cuda", ...
        output: folder for the results; by default the model's own folder where it is one.
        progress: told the name of each task before it runs.

    Raises:
        PowerclipError: no such model, suite or data; or none of a suite's data sets is there.
    """
    names = _suites(suite, data)
    with process_group(device) as place:
        loaded, preprocess, tokenizer = load(model)
        tasks, absent = _read(names, data, size=size, image_size=loaded.image_size[0])
        folder = output or (Path(model) if Path(model).is_dir() else Path())
        results: Results = {}
        model_at = loaded.to(place)
        for task, score in product(tasks, scores):
            found = evaluate_tasks(
                model_at,
                preprocess,
                tokenizer,
                [task],
                device=place,
                batch_size=batch_size,
                workers=workers,
                score=score,
                regions=regions,
                progress=progress,
            )
            results |= found
            if rank() == 0:
                for name, metrics in found.items():
                    _write(folder / "evaluation" / f"{name}.json", {"task": name, "metrics": metrics})
        evaluation = Evaluation(suite=" ".join(names), tasks=results, averages=averages(names, results), absent=absent)
        if rank() == 0:
            _write(folder / "evaluation.json", evaluation.to_json())
        return evaluation


def write_evaluation(path: Path, results: Results, *, suite: str) -> Evaluation:
    """Write results as JSON; the file appears whole."""
    evaluation = Evaluation(suite=suite, tasks=results, averages=averages(suite.split(), results))
    _write(path, evaluation.to_json())
    return evaluation


def _suites(suite: str | Sequence[str] | None, data: Path | None) -> list[str]:
    names = [suite] if isinstance(suite, str) else list(suite or ())
    names = names or ["pairs" if data is not None else "scenes"]
    for name in names:
        if name not in (*OWN_SUITES, *SUITES):
            raise PowerclipError(f"unknown suite {name!r}; suites: {', '.join((*OWN_SUITES, *SUITES))}")
        if name != "scenes" and data is None:
            raise PowerclipError(f"the {name} suite needs data; add --data DIR")
    return list(dict.fromkeys(names))


def read_tasks(suite: str | Sequence[str], data: Path | None, *, size: int, image_size: int) -> list[Task]:
    """The tasks of one or more suites; those whose data set is absent are left out.

    Args:
        suite: as in ``evaluate_model``.
        data: what the suite needs.
        size: images per generated task.
        image_size: side in pixels of generated images.

    Raises:
        PowerclipError: no such suite or data; or none of a suite's data sets is there.
    """
    return _read(_suites(suite, data), data, size=size, image_size=image_size)[0]


def _read(names: Sequence[str], data: Path | None, *, size: int, image_size: int) -> tuple[list[Task], dict[str, str]]:
    """All tasks of the suites, and what is absent with its source. All is read first: an error costs no encoding."""
    tasks: list[Task] = []
    absent: dict[str, str] = {}
    for name in names:
        if name == "scenes":
            tasks += evaluation_tasks(seed=SCENES_SEED, size=size, image_size=image_size)
            continue
        assert data is not None  # _suites has seen to it
        if name == "pairs":
            tasks.append(retrieval_from_shards(data))
            continue
        found = {benchmark: benchmark.folder(data) for benchmark in SUITES[name]}
        absent |= {benchmark.name: benchmark.source for benchmark, folder in found.items() if folder is None}
        if not any(found.values()):
            wanted = ", ".join(benchmark.name for benchmark in SUITES[name])
            first = SUITES[name][0]
            raise PowerclipError(
                f"{data} holds no data set of the {name} suite; expected folders named {wanted} (for example from "
                f"{first.source})"
            )
        tasks += [
            task
            for benchmark, folder in found.items()
            if folder is not None
            for task in benchmark.read(folder, benchmark.name)
        ]
    return tasks, absent


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
