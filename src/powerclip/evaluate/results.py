"""``evaluation.json``: a model's results on any number of data sets, each with the data it was measured on.

    {"model": "/runs/photos", "weights": "5e0c...", "suite": "pairs scenes",
     "tasks": {"retrieval:heldout": {"i2t_R@1": 0.5, ...}, "scenes-object": {...}},
     "measured_on": {"retrieval:heldout": {"suite": "pairs", "data": "/data/heldout",
                                           "fingerprint": "9b1f...", "n": 5000, "score": "global"}, ...},
     "estimates": {"retrieval:heldout": {"i2t_R@1": {"n": 5000, "standard_error": 0.007, "chance": null}, ...}, ...},
     "averages": {"retrieval": {"value": 0.4, "measured": 2, "expected": 2,
                                "over": [["retrieval:heldout", "i2t_R@1"], ...]}},
     "absent": {"dtd": "https://..."}, "pending": []}

``tasks`` and ``measured_on`` have the same names, but for tasks of files written before powerclip recorded their
data. ``estimates`` has the sampling error of those metrics that are plain means over items. A task evaluated
again on the same data takes the place of its result. On other data under the same name, the earlier result stays
as ``NAME#FINGERPRINT``, so that ``NAME`` is always the latest. ``pending`` are tasks that an interrupted
evaluation has not reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from powerclip.config import from_dict
from powerclip.config.values import Pixels
from powerclip.evaluate.averages import Average, averages
from powerclip.evaluate.datasets.images import identity, stamps
from powerclip.evaluate.metrics import Estimate
from powerclip.files import read_json, write_json
from powerclip.regions import rle
from powerclip.tasks import (
    Classification,
    Grounding,
    HardNegative,
    HardNegatives,
    LinearProbe,
    Quadruples,
    Retrieval,
    Segmentation,
    Task,
    images_of,
)

Metrics = Mapping[str, float]
Results = Mapping[str, Metrics]

FILE = "evaluation.json"

EARLIER = "#"
"""Between a task's name and the fingerprint of data that its latest result is not of."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a result was measured on: a task of a suite."""

    suite: str
    data: str
    """Where the data are: an absolute path, or how they were generated."""
    fingerprint: str
    """A hash of everything the task asks: its texts, labels and images, as ``identity`` and ``stamps`` tell them."""
    n: int
    """Items measured: images (to test on), or quadruples and (groups of) hard negatives."""
    of: int | None = None
    """Items of the complete release, where that is known."""
    score: str | None = None
    """What images and texts were scored by, as the end of the result's name says: "global" without one."""

    def with_pixels(self, pixels: Pixels) -> Origin:
        """The same images read in another way: another measurement."""
        fingerprint = hashlib.sha256(f"{self.fingerprint} {pixels}".encode()).hexdigest()[:16]
        return replace(self, data=f"{self.data} (pixels: {pixels})", fingerprint=fingerprint)

    def fields(self) -> dict[str, str | int]:
        """As files hold it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of one ``model``, an absolute path or a hub id, and a hash of its ``weights`` and config."""

    suite: str = ""
    """Names of the suites, separated by spaces."""
    tasks: Results
    """Metrics by task and name, each between 0 and 1."""
    measured_on: Mapping[str, Origin] = field(default_factory=dict)
    """The data of each task; a task of an older file has none."""
    averages: Mapping[str, Average] = field(default_factory=dict)
    """Averages by label, of the public suites and of the families of other tasks; each says what it is over."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Data sets that were asked for and are missing, with where to get them, and tasks that the model lacks the
    outputs for."""
    pending: Sequence[str] = ()
    """Tasks that were asked for and are not done."""
    model: str = ""
    weights: str = ""

    def only(self, names: Sequence[str]) -> Evaluation:
        """The results of some tasks, and their averages."""
        tasks = {name: self.tasks[name] for name in names}
        origins = {name: self.measured_on[name] for name in names}
        suite = " ".join(dict.fromkeys(origin.suite for origin in origins.values()))
        averages = _averages(suite, tasks, origins)
        return replace(self, suite=suite, tasks=tasks, measured_on=origins, averages=averages)

    def label(self, name: str) -> str:
        """A task's name and, if its data are not the complete release, "(21 of 7511)"."""
        origin = self.measured_on.get(name)
        return name if origin is None or origin.of in (None, origin.n) else f"{name} ({origin.n} of {origin.of})"

    def has(self, name: str, origin: Origin) -> bool:
        """Whether there is a result of a task on these data."""
        before = self.measured_on.get(name)
        return name in self.tasks and before is not None and before.fingerprint == origin.fingerprint

    def kept(self, asked: Mapping[str, Origin]) -> list[str]:
        """What an interrupted evaluation has measured of the tasks asked for, on the same data at the same place,
        if any that it had still to do is among them."""
        if asked.keys().isdisjoint(self.pending):
            return []
        done = [name for name, origin in asked.items() if name not in self.pending and self.has(name, origin)]
        return [name for name in done if self.measured_on[name].data == asked[name].data]

    def with_result(self, name: str, metrics: Metrics, origin: Origin) -> Evaluation:
        """With one more result; a result of the same name on other data stays, under another name."""
        before, replaced = self.measured_on.get(name), (name, f"{name}{_mark(origin)}")
        tasks = {task: result for task, result in self.tasks.items() if task not in replaced}
        origins = {task: other for task, other in self.measured_on.items() if task not in replaced}
        if name in self.tasks and not self.has(name, origin):
            aside = f"{name}{_mark(before)}"
            tasks[aside] = self.tasks[name]
            origins |= {aside: before} if before else {}
        tasks[name], origins[name] = metrics, origin
        suite = " ".join(dict.fromkeys([*self.suite.split(), origin.suite]))
        return replace(
            self,
            suite=suite,
            tasks=tasks,
            measured_on=origins,
            averages=_averages(suite, tasks, origins),
            pending=[other for other in self.pending if other != name],
        )

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        origins = {name: origin.fields() for name, origin in self.measured_on.items()}
        estimates = {task: details for task, metrics in self.tasks.items() if (details := details_of(metrics))}
        write_json(folder / FILE, asdict(self) | {"measured_on": origins, "estimates": estimates})


def read_evaluation(folder: Path) -> Evaluation | None:
    """The results in a folder's ``evaluation.json``; None if there are none or the file has another form.

    The averages are computed: a file of an earlier version may lack some, or not say what they are over.
    """
    try:
        value = read_json(folder / FILE)
        suite = str(value.get("suite", ""))
        estimates = value.get("estimates") or {}
        tasks = {
            task: {
                name: Estimate(number, **details) if (details := estimates.get(task, {}).get(name)) else float(number)
                for name, number in metrics.items()
                if number is not None
            }
            for task, metrics in value["tasks"].items()
        }
        origins = {name: from_dict(Origin, origin) for name, origin in (value.get("measured_on") or {}).items()}
        found = Evaluation(
            suite=suite,
            tasks=tasks,
            measured_on=origins,
            averages=_averages(suite, tasks, origins),
            absent={str(name): str(source) for name, source in (value.get("absent") or {}).items()},
            pending=[str(name) for name in value.get("pending") or ()],
            model=str(value.get("model", "")),
            weights=str(value.get("weights", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return found if tasks else None


def details_of(metrics: Metrics) -> dict[str, dict[str, float | None]]:
    """What a file says of the estimates among metrics, by name."""
    return {name: vars(metric) for name, metric in metrics.items() if isinstance(metric, Estimate)}


def _averages(suite: str, tasks: Results, origins: Mapping[str, Origin]) -> dict[str, Average]:
    """The averages over the latest results."""
    latest = {task: metrics for task, metrics in tasks.items() if not task.endswith(_mark(origins.get(task)))}
    return averages(suite.split(), latest, {name: origin.score for name, origin in origins.items() if origin.score})


def _mark(origin: Origin | None) -> str:
    """The end of the name of a result that is not the latest of its task."""
    return f"{EARLIER}{origin.fingerprint[:8] if origin else 'earlier'}"


def origin_of(task: Task, *, suite: str, data: str, of: int | None = None) -> Origin:
    """What a task's results will be measured on; none of its images is decoded. PowerclipError if a file is gone."""
    texts: Sequence[Sequence[str]]
    if isinstance(task, Retrieval):
        texts = task.captions
    elif isinstance(task, HardNegatives):
        texts = [_texts(item) for item in task.items]
    elif isinstance(task, Quadruples):
        texts = [item.captions for item in task.items]
    elif isinstance(task, Segmentation):
        settings = (task.short_side, task.logit_scale, task.least_probability, task.least_area)
        texts = [*task.class_names, task.templates, [str(setting) for setting in settings]]
    elif isinstance(task, Grounding):
        texts = [*task.phrases, [rle.encode(mask) for open_masks in task.masks for mask in open_masks()]]
    elif isinstance(task, LinearProbe):
        texts = [[str(number) for number in (task.classes, *task.counts, *task.labels)]]
    else:
        answers = task.labels if isinstance(task, Classification) else task.targets
        texts = [task.class_names, task.templates, [str(answer) for answer in answers]]
    images, digest = images_of(task), hashlib.sha256()
    for part in (*map(identity, images), *stamps(images), *map("\0".join, texts)):
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    if isinstance(task, HardNegatives):
        n = len(set(task.units))
    elif isinstance(task, LinearProbe):
        n = task.counts[-1]
    else:
        n = len(task.items if isinstance(task, Quadruples) else task.images)
    return Origin(suite=suite, data=data, fingerprint=digest.hexdigest()[:16], n=n, of=of)


def _texts(item: HardNegative) -> list[str]:
    """What distinguishes an item, but for its images."""
    texts = [content if isinstance(content, str) else "" for content in (item.positive, *(item.negatives or [""]))]
    return [item.kind, *texts, *([item.image] if isinstance(item.image, str) else []), *filter(None, [item.group])]
