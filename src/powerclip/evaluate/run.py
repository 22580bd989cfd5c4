"""Evaluate a saved model on suites: load it, read the data sets, run their tasks, write the results."""

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import nn

from powerclip.config import EvaluateConfig
from powerclip.config.values import Pixels
from powerclip.data.remote import is_remote
from powerclip.data.shards import find_shards
from powerclip.distributed import process_group, rank, rank0_first
from powerclip.errors import PowerclipError, did_you_mean
from powerclip.evaluate.averages import score_after, without_score
from powerclip.evaluate.datasets.own_classes import classes_from_folder
from powerclip.evaluate.datasets.own_shards import retrieval_from_shards
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.results import (
    EARLIER,
    FILE,
    Evaluation,
    Origin,
    Results,
    details_of,
    origin_of,
    read_evaluation,
)
from powerclip.evaluate.score import has_masks, jobs_of, run_jobs, skipped
from powerclip.evaluate.suites import BENCHMARKS, SUITES, benchmarks_of
from powerclip.files import make_folder, require_writable, write_json
from powerclip.model import PowerCLIP, load_any
from powerclip.runs import RunFolder
from powerclip.scenes import evaluation_tasks, segmentation_task
from powerclip.tasks import Task

SCENES_SEED = 30_000
"""Seed of the evaluation scenes: the same for every model; the training scenes are of another split."""

LIGHT_SEED = 10_000
"""Seed of the scenes to watch a training by; those of the final evaluation must not influence when a training ends."""

OWN_DATA = ("pairs", "classes")
"""Suites of your own data: retrieval among the pairs of shards, and classification of images in folders."""
OWN_SUITES = ("scenes", *OWN_DATA, "scenes-segmentation")
"""Suites that need no public data: these, and generated tasks."""


class Found(NamedTuple):
    """A task that was read, and what its origin says except for the fingerprint, which takes a look at every file."""

    task: Task
    suite: str
    data: str
    of: int | None


def evaluate_model(
    model: str, config: EvaluateConfig | None = None, *, progress: Callable[[str], None] | None = None
) -> Evaluation:
    """Evaluate a run folder, a model folder or a hub id zero-shot; return the results of this call.

    With ``config.pretrained``, ``model`` is any model's name of open_clip.

    Started by torchrun, the processes share the work and get equal results; the first one writes them, as soon as a
    task is done: ``evaluation/TASK.json`` for it alone, and ``evaluation.json``, to which results on other data are
    added. If an evaluation of these weights was interrupted, and something that it had still to do is asked for again,
    only what it lacks is measured, with a warning. What interrupts this one gets a note of what is kept.

    ``progress`` is called with the name of each task before it runs. PowerclipError if there is no such model,
    suite or data, none of the suites' data sets is there, or regions are asked for that the data do not hold.
    """
    config = config or EvaluateConfig()
    names, folder = suites_asked_for(config.suite, config.data), results_folder(model, config)
    require_writable(folder)
    pairs = [str(config.data)] if config.data else _training_data(model) if "pairs" in names else []
    with process_group(config.device) as place:
        loaded, preprocess, tokenizer = load_any(model, config.pretrained)
        size = (loaded if isinstance(loaded, PowerCLIP) else loaded.visual).image_size  # open_clip's may be a number
        height = size if isinstance(size, int) else size[0]
        found, absent = _asked_for(names, config, pairs, image_size=height)
        absent |= skipped(loaded, [one.task for one in found])
        found = [one for one in found if one.task.name not in absent]
        jobs = jobs_of([one.task for one in found], config.scores, config.regions)
        origins = rank0_first(lambda: [_origin(one, config.pixels) for one in found])
        origin_of_task = {id(one.task): origin for one, origin in zip(found, origins, strict=True)}
        asked = {
            job.name: replace(origin_of_task[id(job.task)], score=score_after(job.task.name, job.name)) for job in jobs
        }
        label = model if config.pretrained is None else f"{model}:{config.pretrained}"
        digest, former = digest_of(loaded), digest_of_weights(loaded)
        evaluation = rank0_first(lambda: _earlier_results(folder, label, digest, former=former))
        own = {*asked, *(benchmark.name for name in names for benchmark in benchmarks_of(name))}
        if kept := evaluation.kept(asked):
            warnings.warn(
                f"continued: the results of {', '.join(kept)} are of the interrupted evaluation", stacklevel=2
            )
        jobs = [job for job in jobs if job.name not in kept]
        evaluation = replace(evaluation, absent=absent, pending=[job.name for job in jobs])
        encoder = Encoder(
            loaded.to(place),
            preprocess,
            tokenizer,
            device=place,
            batch_size=config.batch_size,
            workers=config.workers,
            pixels=config.pixels,
        )
        try:
            for job, metrics in run_jobs(encoder, jobs, regions=config.regions, progress=progress):
                evaluation = evaluation.with_result(job.name, metrics, asked[job.name])
                if rank() == 0:
                    _write(folder, evaluation, job.name, own=own, former=former)
        except BaseException as error:  # a key press, too
            if finished := [name for name in asked if name not in evaluation.pending]:
                error.add_note(
                    f"The results of {', '.join(finished)} are kept in {folder / FILE}; "
                    f"the same command continues with {evaluation.pending[0]}"
                )
            raise
        return replace(evaluation.only(list(asked)), absent=absent)


def _asked_for(
    names: Sequence[str], config: EvaluateConfig, pairs: Sequence[str], *, image_size: int
) -> tuple[list[Found], dict[str, str]]:
    """``_read``, with the names of the results; PowerclipError if there are no data, or no regions as asked for."""
    found, absent = _read(names, config.data, pairs, size=config.size, image_size=image_size)
    if not found:
        raise _none_of(names, config.data)
    if config.regions == "stored":
        _check_regions(found)
    return _named(found), absent


def _check_regions(found: Sequence[Found]) -> None:
    """PowerclipError if regions that were asked for are not stored: of other data than shards there are none."""
    own = [(one.task, one.data) for one in found if one.suite == "pairs"]
    if not own:
        raise PowerclipError("regions 'stored' are those of your own shards; add the pairs suite, or leave them 'grid'")
    if without := [data for task, data in own if not has_masks(task)]:
        raise PowerclipError(
            f"no regions are stored in {without[0]}; make them with powerclip prepare --regions superpixels or sam, or "
            "evaluate with --regions grid"
        )


def _none_of(names: Sequence[str], data: Path | None) -> PowerclipError:
    """There is no data set of some suites."""
    asked = [benchmark for name in names for benchmark in benchmarks_of(name)]
    return PowerclipError(
        f"{data} holds no data set of the {' or '.join(names)} suite; expected folders named "
        f"{', '.join(benchmark.name for benchmark in asked)} (for example from {asked[0].source})"
    )


def _named(found: Sequence[Found]) -> list[Found]:
    """The tasks with the names of their results: other data of your own get another row in tables."""
    folders = Counter(Path(one.data).name for one in found if one.suite in OWN_DATA)
    named = []
    for one in found:
        if one.suite in OWN_DATA:
            folder = Path(one.data).name
            name = f"{one.task.name}:{folder if folders[folder] == 1 else one.data}"
            one = one._replace(task=replace(one.task, name=name))
        named.append(one)
    return named


def _origin(found: Found, pixels: Pixels) -> Origin:
    """What a task is measured on, with the way in which the images of public data are read."""
    origin = origin_of(found.task, suite=found.suite, data=found.data, of=found.of)
    return origin if pixels == "pil" or found.suite in OWN_SUITES else origin.with_pixels(pixels)


def task_again(name: str, origin: Origin, *, size: int) -> Task | None:
    """The task that a result is of, read again: all of it, or ``size`` images of pairs and scenes; None if it is gone.

    PowerclipError if its data are there and cannot be read.
    """
    name, place = without_score(name.split(EARLIER)[0], origin.score), origin.data.split(" (pixels: ")[0]
    if generated := re.fullmatch(r"generated: seed (\d+), (\d+) pixels", place):
        seed, image_size = map(int, generated.groups())
        found: Sequence[Task] = evaluation_tasks(seed=seed, size=size, image_size=image_size)
    elif not Path(place).exists():
        return None
    elif origin.suite == "pairs":
        return retrieval_from_shards(place, limit=size)
    elif origin.suite == "classes":
        return classes_from_folder(Path(place))
    else:
        readers = [b for b in benchmarks_of(origin.suite) if name in (b.name, *b.tasks)]
        found = [task for benchmark in readers for task in benchmark.read(Path(place), benchmark.name)]
    return next((task for task in found if task.name == name), None)


def results_folder(model: str, config: EvaluateConfig) -> Path:
    """Where the results of a model go: as asked for, else the model's own folder, or for a hub id the current one."""
    return config.output or (Path(model) if Path(model).is_dir() else Path())


def write_evaluation(folder: Path, results: Results, *, tasks: Sequence[Task], suite: str) -> Evaluation:
    """Write results of ``evaluate_tasks`` on your own tasks as ``evaluation.json``, replacing an existing file."""
    origins = {task.name: origin_of(task, suite=suite, data=suite) for task in tasks}
    evaluation = Evaluation(tasks={})
    for name, metrics in results.items():
        task = name if name in origins else without_score(name)
        evaluation = evaluation.with_result(name, metrics, replace(origins[task], score=score_after(task, name)))
    evaluation.write(folder)
    return evaluation


def light_suite(
    suite: str | Sequence[str] = "scenes", data: Path | None = None, *, image_size: int, size: int = 64
) -> Sequence[Task]:
    """Tasks to watch a training by: create them once, and pass them to ``evaluate_tasks`` at intervals.

    ``evaluate_tasks`` leaves the model's mode and the random generators as they are. On many processes all must call
    it, at the same step. ``suite`` is one, or several, of ``EvaluateConfig``'s, and ``data`` what it needs. Of each
    generated task there are ``size`` images with sides of ``image_size`` pixels; the scenes are not those that
    ``evaluate_model`` shows. PowerclipError if there is no such suite, or none of its data; ValueError if size is not
    positive.
    """
    names = require_data([suite] if isinstance(suite, str) else suite, data)
    found, absent = _read(names, data, [str(data)], size=size, image_size=image_size, seed=LIGHT_SEED)
    for name in names:
        if (asked := benchmarks_of(name)) and all(benchmark.name in absent for benchmark in asked):
            raise _none_of([name], data)
    return [one.task for one in found]


def as_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Results as one flat line of a log: ``eval/TASK/METRIC``."""
    return {f"eval/{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}


def suites_asked_for(suite: Sequence[str], data: Path | None) -> list[str]:
    """The names of the suites, once each; PowerclipError if there is no such suite, or it needs data."""
    names = list(dict.fromkeys(suite)) or ["pairs" if data is not None else "scenes"]
    for name in names:
        if name not in OWN_SUITES and not benchmarks_of(name):
            known = f"suites: {', '.join((*OWN_SUITES[:3], *SUITES, *OWN_SUITES[3:]))}, or the name of a data set"
            near = did_you_mean(name, (*OWN_SUITES, *SUITES, *BENCHMARKS), otherwise=known)
            raise PowerclipError(f"unknown suite {name!r}; {near}")
        if name not in {*OWN_SUITES} - {"classes"} and data is None:
            raise PowerclipError(f"the {name} suite needs data; add --data DIR")
    return names


def require_data(suite: Sequence[str], data: Path | None) -> list[str]:
    """``suites_asked_for``; PowerclipError, too, if none of their data are there. Names alone are looked at."""
    names = suites_asked_for(suite, data)
    if "pairs" in names:
        if data is None:
            raise PowerclipError("the pairs suite needs data; name a folder of shards")
        find_shards(data)
    if "classes" in names and not (data and data.is_dir()):
        raise PowerclipError(f"{data} is not a folder; name one with a folder of images for each class")
    asked = [benchmark for name in names for benchmark in benchmarks_of(name)]
    if data is not None and {*names}.isdisjoint(OWN_SUITES) and all(b.folder(data) is None for b in asked):
        raise _none_of(names, data)
    return names


def _training_data(model: str) -> list[str]:
    """The sources that a run was trained on."""
    data = RunFolder(model).data()
    if data is None:
        raise PowerclipError(f"{model} does not say which data it was trained on (no data.json); add --data DIR")
    remote = next((source for source in data.sources if is_remote(source)), None)
    if remote is not None:
        raise PowerclipError(f"{model} was trained on {remote}, which is remote; add --data DIR with a copy")
    return list(data.sources)


def _read(
    names: Sequence[str],
    data: Path | None,
    pairs: Sequence[str],
    *,
    size: int,
    image_size: int,
    seed: int = SCENES_SEED,
) -> tuple[list[Found], dict[str, str]]:
    """The suites' tasks with their data, and missing data sets with their source; all is read before any is encoded."""
    tasks: list[Found] = []
    absent: dict[str, str] = {}
    read: set[str] = set()  # data sets that several suites name
    for name in names:
        found: list[tuple[str, list[Task], dict[str, int]]] = []  # where the data are, their tasks, the complete counts
        if name.startswith("scenes"):
            options = {"seed": seed, "size": size, "image_size": image_size}
            scenes = evaluation_tasks(**options) if name == "scenes" else [segmentation_task(**options)]
            found.append((f"generated: seed {seed}, {image_size} pixels", list(scenes), {}))
        elif name == "pairs":
            found += [(str(Path(source).resolve()), [retrieval_from_shards(source)], {}) for source in pairs]
        elif name == "classes":
            assert data is not None  # suites_asked_for has checked it
            found.append((str(data.resolve()), [classes_from_folder(data)], {}))
        else:
            assert data is not None
            asked = benchmarks_of(name)
            folders = {benchmark: benchmark.folder(data) for benchmark in asked}
            absent |= {benchmark.name: benchmark.source for benchmark, folder in folders.items() if folder is None}
            found += [
                (str(folder.resolve()), benchmark.read(folder, benchmark.name), benchmark.complete)
                for benchmark, folder in folders.items()
                if folder is not None and benchmark.name not in read
            ]
            read |= {benchmark.name for benchmark in asked}
        for where, of_data, complete in found:
            tasks += [Found(task, name, where, complete.get(task.name)) for task in of_data]
    return tasks, absent


def digest_of(model: nn.Module) -> str:
    """A hash of what decides a model's numbers: its weights, and its config without the places in it."""
    config = {name: value for name, value in getattr(model, "config", {}).items() if name != "start"}
    if "text_cfg" in config.get("model", {}):
        text = {name: value for name, value in config["model"]["text_cfg"].items() if name != "hf_tokenizer_name"}
        config["model"] = {**config["model"], "text_cfg": text}
    content = f"{digest_of_weights(model)} {json.dumps(config, sort_keys=True)}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_of_weights(model: nn.Module) -> str:
    """A hash of a model's weights alone, by which earlier versions knew a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _lock(folder: Path) -> FileLock:
    """Held while results in a folder are read and written, as two evaluations may write there at once."""
    make_folder(folder / "evaluation")
    return FileLock(folder / "evaluation" / ".lock")


def _earlier_results(folder: Path, model: str, weights: str, *, former: str) -> Evaluation:
    """``_own_results``; where there is no file, there are none, and nothing is created."""
    with _lock(folder) if (folder / FILE).exists() else nullcontext():
        return _own_results(folder, model, weights, former=former)


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
        found = read_evaluation(folder)
    return replace(found or Evaluation(tasks={}), model=place, weights=weights)


def _is_older(file: Path, model: str) -> bool:
    """Whether a file was written before the weights in a run or model folder."""
    places = (Path(model, name) for name in ("model/model.safetensors", "model.safetensors"))
    return any(file.stat().st_mtime_ns < place.stat().st_mtime_ns for place in places if place.exists())


def _write(folder: Path, evaluation: Evaluation, name: str, *, own: Set[str], former: str) -> None:
    """Write the newest result together with what other evaluations have written, and still have to do or lack.

    ``own`` has the names of the results and data sets that were asked for here.
    """
    with _lock(folder):
        found = _own_results(folder, evaluation.model, evaluation.weights, former=former)
        found = found.with_result(name, evaluation.tasks[name], evaluation.measured_on[name])
        for task, metrics in found.tasks.items():
            path = folder / "evaluation" / f"{task.replace('/', '_')}.json"
            if task == name or not path.exists():  # also of a result that has got another name now
                origin = found.measured_on[task].fields() if task in found.measured_on else {}
                measured = {"metrics": metrics, "estimates": details_of(metrics)}
                write_json(path, {"task": task, "weights": evaluation.weights, **origin, **measured})
        absent = {other: source for other, source in found.absent.items() if other not in own}
        pending = [other for other in found.pending if other not in own]
        absent, pending = {**absent, **evaluation.absent}, [*pending, *evaluation.pending]
        replace(found, absent=absent, pending=pending).write(folder)
