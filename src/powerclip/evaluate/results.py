"""``evaluation.json``: a model's results on any number of data sets, each with the data it was measured on.

    {"model": "/runs/photos", "weights": "5e0c...", "suite": "pairs scenes",
     "tasks": {"retrieval:heldout": {"i2t_R@1": 0.5, ...}, "scenes-object": {...}},
     "measured_on": {"retrieval:heldout": {"suite": "pairs", "data": "/data/heldout", "fingerprint": "9b1f...", "n": 5000}, ...},
     "averages": {"retrieval": {"value": 0.4, "measured": 2, "expected": 2, "over": [["retrieval:heldout", "i2t_R@1"], ...]}},
     "absent": {"dtd": "https://..."}, "pending": []}

``tasks`` and ``measured_on`` have the same names, but for tasks of files written before powerclip recorded their data.
A task evaluated again on the same data takes the place of its result. On other data under the same name, the earlier result
stays as ``NAME#FINGERPRINT``, so that ``NAME`` is always the latest. ``pending`` are tasks that an interrupted evaluation has
not reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from powerclip.evaluate.datasets.images import identity
from powerclip.evaluate.suites import Average, averages
from powerclip.files import read_json, write_json
from powerclip.tasks import Classification, HardNegatives, Picture, Quadruples, Retrieval, Task

Metrics = Mapping[str, float]
Results = Mapping[str, Metrics]

FILE = "evaluation.json"

EARLIER = "#"
"""Between a task's name and the fingerprint of data that its latest result is not of."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a result was measured on."""

    suite: str
    """The suite that the task belongs to."""
    data: str
    """Where the data are: an absolute path, or how they were generated."""
    fingerprint: str
    """A hash of everything the task asks: its texts, labels and images (by content or by name and size)."""
    n: int
    """Items measured: images, or the items of hard negatives and quadruples."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of one model."""

    suite: str = ""
    """Names of the suites, separated by spaces."""
    tasks: Results
    """Metrics by task and name, each between 0 and 1."""
    measured_on: Mapping[str, Origin] = field(default_factory=dict)
    """The data of each task; a task of an older file has none."""
    averages: Mapping[str, Average] = field(default_factory=dict)
    """Averages by label, of the public suites and of the families of other tasks; each says what it is over."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Data sets that were asked for and are missing, and where to get them."""
    pending: Sequence[str] = ()
    """Tasks that were asked for and are not done."""
    model: str = ""
    """The model: an absolute path or a hub id."""
    weights: str = ""
    """A hash of its weights."""

    def only(self, names: Sequence[str]) -> Evaluation:
        """The results of some tasks, and the averages that they are part of."""
        return replace(
            self,
            tasks={name: self.tasks[name] for name in names},
            measured_on={name: self.measured_on[name] for name in names},
            averages={
                label: average
                for label, average in self.averages.items()
                if any(task in names for task, _ in average.over)
            },
        )

    def with_result(self, name: str, metrics: Metrics, origin: Origin) -> Evaluation:
        """With one more result; a result of the same name on other data stays, under another name."""
        tasks, origins = dict(self.tasks), dict(self.measured_on)
        before = origins.pop(name, None)
        if name in tasks:
            earlier = tasks.pop(name)
            if before is None or before.fingerprint != origin.fingerprint:
                aside = f"{name}{_mark(before)}"
                tasks[aside] = earlier
                if before is not None:
                    origins[aside] = before
        tasks.pop(f"{name}{_mark(origin)}", None)
        origins.pop(f"{name}{_mark(origin)}", None)
        tasks[name], origins[name] = metrics, origin
        suites = list(dict.fromkeys([*self.suite.split(), origin.suite]))
        latest = {task: values for task, values in tasks.items() if not task.endswith(_mark(origins.get(task)))}
        return replace(
            self,
            suite=" ".join(suites),
            tasks=tasks,
            measured_on=origins,
            averages=averages(suites, latest),
            pending=[other for other in self.pending if other != name],
        )

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(self))


def read_evaluation(folder: Path) -> Evaluation | None:
    """The results in a folder's ``evaluation.json``; None if there are none or the file has another form.

    Averages that a file of an earlier version lacks, or does not say what they are over, are computed.
    """
    try:
        value = read_json(folder / FILE)
        tasks = {
            task: {name: float(number) for name, number in metrics.items() if number is not None}
            for task, metrics in value["tasks"].items()
        }
        suite, stored = str(value.get("suite", "")), value.get("averages") or {}
        means = {label: _average(mean) for label, mean in stored.items() if "over" in mean}
        found = Evaluation(
            suite=suite,
            tasks=tasks,
            measured_on={name: Origin(**origin) for name, origin in (value.get("measured_on") or {}).items()},
            averages=averages(suite.split(), tasks) | means,
            absent={str(name): str(source) for name, source in (value.get("absent") or {}).items()},
            pending=[str(name) for name in value.get("pending") or ()],
            model=str(value.get("model", "")),
            weights=str(value.get("weights", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if tasks else None


def _mark(origin: Origin | None) -> str:
    """The end of the name of a result that is not the latest of its task."""
    return f"{EARLIER}{origin.fingerprint[:8] if origin else 'earlier'}"


def _average(value: Mapping[str, Any]) -> Average:
    number = value["value"]
    return Average(
        value=None if number is None else float(number),
        measured=int(value["measured"]),
        expected=int(value["expected"]),
        over=tuple((str(task), str(metric)) for task, metric in value["over"]),
    )


def origin_of(task: Task, *, suite: str, data: str) -> Origin:
    """What a task's results will be measured on; none of its images is opened."""
    digest = hashlib.sha256()
    for part in _content(task):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return Origin(suite=suite, data=data, fingerprint=digest.hexdigest()[:16], n=len(_items(task)))


def _items(task: Task) -> Sequence[Any]:
    return task.items if isinstance(task, HardNegatives | Quadruples) else task.images


def _content(task: Task) -> Iterator[bytes]:
    """Everything that a task asks, as bytes."""
    if isinstance(task, Retrieval):
        yield from _rows(task.images, task.captions)
    elif isinstance(task, HardNegatives):
        texts = [(item.kind, item.positive, item.negative or "", *item.more_negatives) for item in task.items]
        yield from _rows([item.image for item in task.items], texts)
    elif isinstance(task, Quadruples):
        yield from _rows([image for item in task.items for image in item.images], [i.captions for i in task.items])
    else:
        answers = task.labels if isinstance(task, Classification) else task.targets
        yield from _rows(task.images, [task.class_names, task.templates, [str(answer) for answer in answers]])


def _rows(images: Sequence[Picture], texts: Sequence[Sequence[str]]) -> Iterator[bytes]:
    for image in images:
        yield identity(image).encode()
    for row in texts:
        yield "\0".join(row).encode("utf-8", "surrogatepass")
