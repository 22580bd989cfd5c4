"""The results in a folder: whose they are, and adding to them beside other evaluations."""

from collections.abc import Sequence, Set
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from powerclip.errors import PowerclipError
from powerclip.evaluate.averages import score_after, without_score
from powerclip.evaluate.results import FILE, Evaluation, Results, details_of, origin_of, read_evaluation
from powerclip.files import make_folder, read_json, write_json
from powerclip.tasks import Task


def write_evaluation(folder: Path, results: Results, *, tasks: Sequence[Task], suite: str) -> Evaluation:
    """Write results of ``evaluate_tasks`` on your own tasks as ``evaluation.json``, replacing existing results."""
    origins = {task.name: origin_of(task, suite=suite, data=suite) for task in tasks}
    evaluation = Evaluation(tasks={})
    for name, metrics in results.items():
        task = name if name in origins else without_score(name)
        evaluation = evaluation.with_result(name, metrics, replace(origins[task], score=score_after(task, name)))
    with lock(folder):
        _write_tasks(folder, evaluation)
        evaluation.write(folder)
    return evaluation


def earlier_results(folder: Path, model: str, weights: str, *, former: str) -> Evaluation:
    """``_own_results``; where there is no file, there are none, and nothing is created."""
    with lock(folder) if (folder / FILE).exists() else nullcontext():
        return _own_results(folder, model, weights, former=former)


def add_result(folder: Path, evaluation: Evaluation, name: str, *, own: Set[str], former: str) -> None:
    """Write the newest result together with what other evaluations have written, and still have to do or lack.

    ``own`` has the names of the results and data sets that were asked for here.
    """
    with lock(folder):
        found = _own_results(folder, evaluation.model, evaluation.weights, former=former)
        found = found.with_result(name, evaluation.tasks[name], evaluation.measured_on[name])
        _write_tasks(folder, found)
        absent = {other: source for other, source in found.absent.items() if other not in own}
        pending = [other for other in found.pending if other not in own]
        absent, pending = {**absent, **evaluation.absent}, [*pending, *evaluation.pending]
        replace(found, absent=absent, pending=pending).write(folder)


def _own_results(folder: Path, model: str, weights: str, *, former: str) -> Evaluation:
    """The results of a model in a folder; those of another are moved to ``evaluation-WEIGHTS.json``.

    Files of earlier versions may have its former hash. Still earlier ones have none: those that are older than the
    model are of another.
    """
    place = str(Path(model).resolve()) if Path(model).exists() else model
    found = read_evaluation(folder)
    if found is None and (folder / FILE).exists():
        raise PowerclipError(
            f"{folder / FILE} holds no results that can be read; move it away, or name another --output"
        )
    own = (weights, former)
    if found is not None and found.weights not in own and (found.weights or _is_older(folder / FILE, model)):
        (folder / FILE).rename(folder / f"evaluation-{found.weights[:8] or 'earlier'}.json")
        asides = (folder / f"evaluation-{digest[:8]}.json" for digest in own)
        if aside := next((path for path in asides if path.exists()), None):  # it was evaluated here before
            aside.rename(folder / FILE)
        found = replace(read_evaluation(folder) or Evaluation(tasks={}), weights=weights)
        _write_tasks(folder, found)
    return replace(found or Evaluation(tasks={}), model=place, weights=weights)


def _write_tasks(folder: Path, evaluation: Evaluation) -> None:
    """Make the files in ``evaluation/`` those of all results and of no others."""
    values = {}
    for task, metrics in evaluation.tasks.items():
        origin = evaluation.measured_on[task].fields() if task in evaluation.measured_on else {}
        measured = {"metrics": metrics, "estimates": details_of(metrics)}
        path = folder / "evaluation" / f"{task.replace('/', '_')}.json"
        values[path] = {"task": task, "weights": evaluation.weights, **origin, **measured}
    for path in (folder / "evaluation").glob("*.json"):
        if path not in values and {"task", "metrics"} <= _stored(path).keys():
            path.unlink()
    for path, value in values.items():
        if _stored(path) != value:
            write_json(path, value)


def _stored(path: Path) -> dict[str, Any]:
    """What a file of one result holds; nothing if it cannot be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_older(file: Path, model: str) -> bool:
    """Whether a file was written before the weights in a run or model folder."""
    places = (Path(model, name) for name in ("model/model.safetensors", "model.safetensors"))
    return any(file.stat().st_mtime_ns < place.stat().st_mtime_ns for place in places if place.exists())


def lock(folder: Path) -> FileLock:
    """Held while results in a folder are read and written, as two evaluations may write there at once."""
    make_folder(folder / "evaluation")
    return FileLock(folder / "evaluation" / ".lock")
