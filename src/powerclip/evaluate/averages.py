"""Averages of results: over the public suites, and over the families of all other tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from powerclip.evaluate.datasets.clip_benchmark import FIVE_CAPTIONS
from powerclip.evaluate.suites import BENCHMARKS, CLIP_METRICS, SUITES

PLACES = {
    suite: {suite: tuple(place for benchmark in benchmarks for place in benchmark.metrics)}
    for suite, benchmarks in SUITES.items()
}
"""The averages of each suite by name, and the task and metric of everything that belongs to them."""
PLACES["classification"]["classification, CLIP's metrics"] = tuple(CLIP_METRICS.items())

PUBLIC = {task for benchmark in BENCHMARKS.values() for task in benchmark.tasks or (benchmark.name,)}
"""Tasks of the public suites."""

HEADLINES = (
    *("acc@1", "mAP", "mIoU", "i2t_R@1", "t2i_R@1", "macro", "group", "text", "image"),
    *("patch", "contribution", "patch_last", "contribution_last", "region", "precision", "recall"),
)
"""Metrics that stand for a task in short tables. A task is judged by the first of these that it has, retrieval by the
R@1 of both directions."""

LABELS = {
    "": "",
    "-powerset": ", powerset score",
    "-powerset-stored": ", powerset score of stored regions",
    "-late": ", late interaction",
}
"""What stands at the end of a task's name for the score that its results are by, and at the end of their averages'."""

FAMILIES = {
    "classification": ("acc@1",),
    "retrieval": ("i2t_R@1", "t2i_R@1"),
    "compositionality": ("macro", "text", "image", "group"),
}
"""The metrics that are averaged over the tasks of a family outside the public suites."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """The unweighted mean of metrics over what was measured."""

    value: float | None
    """None where nothing was measured."""
    measured: int
    """Metrics in the mean."""
    expected: int
    """Metrics that the suite has."""
    over: tuple[tuple[str, str], ...] = ()
    """Task and name of each metric in the mean: two averages compare only if these are the same."""


def averages(suites: Iterable[str], results: Mapping[str, Mapping[str, float]]) -> dict[str, Average]:
    """Averages by label: of the named public suites, and of the families of all other tasks."""
    places = [place for suite in suites for place in PLACES.get(suite, {}).items()]
    found = {label: _mean(results, of_suite) for label, of_suite in places if of_suite}
    for label, mean in _family_averages(results).items():
        found[label if label not in found else f"{label}, other tasks"] = mean
    return found


def without_score(name: str) -> str:
    """The name of the task that results belong to."""
    for suffix in LABELS:
        name = name.removesuffix(suffix)
    return name


def _family_averages(results: Mapping[str, Mapping[str, float]]) -> dict[str, Average]:
    """Averages over the tasks outside the public suites by family, if it has two or more metrics; every score has its
    own."""
    found = {}
    for family, names in FAMILIES.items():
        for suffix, label in LABELS.items():
            places = [
                (task, metric)
                for task, metrics in results.items()
                for metric in metrics
                if metric in names
                and task not in PUBLIC
                and not without_score(task).endswith((FIVE_CAPTIONS, "-all-captions"))  # the latter in older files
                and task == without_score(task) + suffix
            ]
            if len(places) > 1:
                found[family + label] = _mean(results, places)
    return found


def _mean(results: Mapping[str, Mapping[str, float]], places: Sequence[tuple[str, str]]) -> Average:
    over = tuple((task, metric) for task, metric in places if metric in results.get(task, {}))
    value = sum(results[task][metric] for task, metric in over) / len(over) if over else None
    return Average(value=value, measured=len(over), expected=len(places), over=over)
