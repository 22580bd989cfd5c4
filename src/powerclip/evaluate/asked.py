"""Which tasks an evaluation is asked for: the suites by name, and their data sets."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from powerclip.config import EvaluateConfig
from powerclip.config.values import Pixels
from powerclip.data.remote import is_remote
from powerclip.data.shards import find_shards
from powerclip.errors import PowerclipError, did_you_mean
from powerclip.evaluate.averages import without_score
from powerclip.evaluate.datasets.own_classes import classes_from_folder
from powerclip.evaluate.datasets.own_shards import retrieval_from_shards
from powerclip.evaluate.results import EARLIER, Origin, origin_of
from powerclip.evaluate.score import has_masks
from powerclip.evaluate.suites import BENCHMARKS, SUITES, benchmarks_of
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


def tasks_asked_for(
    names: Sequence[str], config: EvaluateConfig, pairs: Sequence[str], *, image_size: int
) -> tuple[list[Found], dict[str, str]]:
    """``_read``, with the names of the results; PowerclipError if there are no data, or no regions as asked for."""
    found, absent = _read(names, config.data, pairs, size=config.size, image_size=image_size)
    if not found:
        raise _none_of(names, config.data)
    if config.regions == "stored":
        _check_regions(found)
    return _named(found), absent


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


def _none_of(names: Sequence[str], data: Path | None) -> PowerclipError:
    """There is no data set of some suites."""
    asked = [benchmark for name in names for benchmark in benchmarks_of(name)]
    return PowerclipError(
        f"{data} holds no data set of the {' or '.join(names)} suite; expected folders named "
        f"{', '.join(benchmark.name for benchmark in asked)} (for example from {asked[0].source})"
    )


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


def training_data(model: str) -> list[str]:
    """The sources that a run was trained on."""
    data = RunFolder(model).data()
    if data is None:
        raise PowerclipError(f"{model} does not say which data it was trained on (no data.json); add --data DIR")
    remote = next((source for source in data.sources if is_remote(source)), None)
    if remote is not None:
        raise PowerclipError(f"{model} was trained on {remote}, which is remote; add --data DIR with a copy")
    return list(data.sources)


def origin_of_found(found: Found, pixels: Pixels) -> Origin:
    """What a task is measured on, with the way in which the images of public data are read."""
    origin = origin_of(found.task, suite=found.suite, data=found.data, of=found.of)
    return origin if pixels == "pil" or found.suite in OWN_SUITES else origin.with_pixels(pixels)


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
