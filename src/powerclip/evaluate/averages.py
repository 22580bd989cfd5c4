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

GLOBAL = "global"
LABELS = {
    GLOBAL: "",
    "powerset": ", powerset score",
    "powerset-stored": ", powerset score of stored regions",
    "late": ", late interaction",
}
"""The scores, which are at the end of a result's name ("-late"; nothing for the global one), and what is at the end of
the names of their averages."""

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


def averages(
    suites: Iterable[str], results: Mapping[str, Mapping[str, float]], scores: Mapping[str, str] | None = None
) -> dict[str, Average]:
    """Averages by label: of the named public suites, and of the families of all other tasks; every score has its own.

    ``scores`` are those of results, by name, where they are known: data of your own may be called ``shots-late``.
    """
    score_by_task = {task: (scores or {}).get(task) or score_of(task) for task in results}
    found = {}
    for label, places in (place for suite in suites for place in PLACES.get(suite, {}).items()):
        for score, end in LABELS.items():
            by_score = {task: metrics for task, metrics in results.items() if score_by_task[task] == score}
            name = "{}" if score == GLOBAL else f"{{}}-{score}"
            mean = _mean(by_score, [(name.format(task), metric) for task, metric in places])
            if places and (mean.measured or score == GLOBAL):
                found[label + end] = mean
    for label, mean in _family_averages(results, score_by_task).items():
        found[label if label not in found else f"{label}, other tasks"] = mean
    return found


def score_after(task: str, name: str) -> str:
    """The score that a result of a task is by, from the result's name."""
    return name.removeprefix(task).removeprefix("-") or GLOBAL


def score_of(name: str) -> str:
    """The score that the end of a result's name says, where it is not known."""
    return next((score for score in LABELS if score != GLOBAL and name.endswith(f"-{score}")), GLOBAL)


def without_score(name: str, score: str | None = None) -> str:
    """The name of the task that a result belongs to, given its score if that is known."""
    score = score or score_of(name)
    return name if score == GLOBAL else name.removesuffix(f"-{score}")


def _family_averages(results: Mapping[str, Mapping[str, float]], scores: Mapping[str, str]) -> dict[str, Average]:
    """Averages over the tasks outside the public suites by family and score, of two or more metrics."""
    found = {}
    for family, names in FAMILIES.items():
        for score, label in LABELS.items():
            places = [
                (task, metric)
                for task, metrics in results.items()
                for metric in metrics
                if metric in names
                and scores[task] == score
                and without_score(task, score) not in PUBLIC
                # The latter is in files of earlier versions.
                and not without_score(task, score).endswith((FIVE_CAPTIONS, "-all-captions"))
            ]
            if len(places) > 1:
                found[family + label] = _mean(results, places)
    return found


def _mean(results: Mapping[str, Mapping[str, float]], places: Sequence[tuple[str, str]]) -> Average:
    over = tuple((task, metric) for task, metric in places if metric in results.get(task, {}))
    value = sum(results[task][metric] for task, metric in over) / len(over) if over else None
    return Average(value=value, measured=len(over), expected=len(places), over=over)
