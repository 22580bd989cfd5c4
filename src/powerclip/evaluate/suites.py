"""The suites: which public data sets, the metrics each is read by, where to get them, and all averages of results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.aro_order import order_task
from powerclip.evaluate.datasets.clip_benchmark import ALL_CAPTIONS, is_webdataset, read_webdataset
from powerclip.evaluate.datasets.imagenet import read_imagenet, read_objectnet
from powerclip.evaluate.datasets.releases import (
    read_aro,
    read_karpathy,
    read_sugarcrepe,
    read_valse,
    read_winoground,
)
from powerclip.tasks import Retrieval, Task

Reader = Callable[[Path, str], list[Task]]

HUB = "https://huggingface.co/datasets/clip-benchmark"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One data set of a suite."""

    name: str
    """The name of the data set and of its task."""
    metrics: tuple[tuple[str, str], ...]
    """Task and name of each metric that is averaged over the suite."""
    source: str
    """Where to get it."""
    read: Reader
    """Reads its tasks, given its folder and name; raises PowerclipError if it cannot."""
    also_known_as: tuple[str, ...] = ()
    """Other names of its folder."""

    def folder(self, data: Path) -> Path | None:
        """Where the data set is under a folder; None if it is missing."""
        for name in (self.name, *self.also_known_as):
            for form in (name, f"wds_{name}", f"wds_vtab-{name}", f"vtab-{name}", f"vtab/{name}"):
                if (data / form).is_dir():
                    return data / form
        return None


def _either(folder: Path, name: str, *, release: Reader) -> list[Task]:
    """Tasks in clip_benchmark's layout if the folder has it, otherwise in the release's."""
    return read_webdataset(folder, name) if is_webdataset(folder) else release(folder, name)


def _webdataset(folder: Path, name: str) -> list[Task]:
    if not is_webdataset(folder):
        raise PowerclipError(
            f"{folder} is not in clip_benchmark's layout (no test/nshards.txt); get {name} from {HUB}, or convert it "
            "with clip_benchmark_export_wds"
        )
    return read_webdataset(folder, name)


def _order(folder: Path, name: str) -> list[Task]:
    captions = _either(folder, name, release=read_karpathy)[-1]  # all captions, where an image has more than five
    if not isinstance(captions, Retrieval):
        raise PowerclipError(f"{folder} holds no captions; expected a data set of the retrieval suite")
    return [order_task(name, captions)]


def _classification(name: str, hub: str, clip_metric: str = "acc@1") -> tuple[Benchmark, str]:
    benchmark = Benchmark(name=name, metrics=((name, "acc@1"),), source=f"{HUB}/wds_{hub}", read=_webdataset)
    return benchmark, clip_metric


_CLASSIFICATION = (
    _classification("food101", "food101"),
    _classification("cifar10", "vtab-cifar10"),
    _classification("cifar100", "vtab-cifar100"),
    _classification("sun397", "sun397"),
    _classification("cars", "cars"),
    _classification("voc2007", "voc2007"),
    _classification("fgvc_aircraft", "fgvc_aircraft", "mean_per_class"),
    _classification("dtd", "vtab-dtd"),
    _classification("pets", "vtab-pets", "mean_per_class"),
    _classification("caltech101", "vtab-caltech101", "mean_per_class"),
    _classification("flowers", "vtab-flowers", "mean_per_class"),
    _classification("stl10", "stl10"),
    _classification("eurosat", "vtab-eurosat"),
    _classification("resisc45", "vtab-resisc45"),
    _classification("gtsrb", "gtsrb"),
    _classification("country211", "country211"),
    _classification("pcam", "vtab-pcam"),
)

CLASSIFICATION = tuple(benchmark for benchmark, _ in _CLASSIFICATION)
"""The 17 data sets of the paper's family (the task list of CLIP-PGS, Pei et al., CVPR 2025), by top-1 accuracy as reported there."""

CLIP_METRICS = {benchmark.name: metric for benchmark, metric in _CLASSIFICATION}
"""The metric that Radford et al. (2021) report for each of the 17: mean per class for four of them."""


def _imagenet(name: str, source: str, classes: int, *names: str) -> Benchmark:
    return Benchmark(
        name=name,
        metrics=((name, "acc@1"),),
        source=f"{HUB}/wds_{source}",
        read=partial(_either, release=partial(read_imagenet, classes=classes)),
        also_known_as=names,
    )


ROBUSTNESS = (
    _imagenet("imagenetv2", "imagenetv2", 1000, "imagenet-v2", "imagenetv2-matched-frequency-format-val"),
    _imagenet("imagenet_sketch", "imagenet_sketch", 1000, "imagenet-sketch", "sketch"),
    _imagenet("imagenet-a", "imagenet-a", 200),
    _imagenet("imagenet-r", "imagenet-r", 200),
    _imagenet("imagenet-o", "imagenet-o", 200),
    Benchmark(
        name="objectnet",
        metrics=(("objectnet", "acc@1"),),
        source=f"{HUB}/wds_objectnet or https://objectnet.dev",
        also_known_as=("objectnet-1.0",),
        read=partial(_either, release=read_objectnet),
    ),
)
"""Six test sets with ImageNet's classes."""

IMAGENET = (_imagenet("imagenet1k", "imagenet1k", 1000, "imagenet", "ILSVRC2012"),)
"""ImageNet's validation images (``val/`` with class folders, or clip_benchmark's layout)."""


def _retrieval(name: str, *names: str) -> Benchmark:
    return Benchmark(
        name=name,
        metrics=((name, "i2t_R@1"), (name, "t2i_R@1")),
        source=f"{HUB}/wds_{name}, or Karpathy's dataset_*.json with the images",
        also_known_as=names,
        read=partial(_either, release=read_karpathy),
    )


RETRIEVAL = (_retrieval("mscoco_captions", "coco", "mscoco"), _retrieval("flickr30k"), _retrieval("flickr8k"))
"""Both directions of each: the paper's six settings, on Karpathy's test splits with five captions per image."""

COMPOSITIONALITY = (
    Benchmark(
        name="winoground",
        metrics=tuple(("winoground", metric) for metric in ("text", "image", "group")),
        source="https://huggingface.co/datasets/facebook/winoground (examples.jsonl, images)",
        read=read_winoground,
    ),
    Benchmark(
        name="sugarcrepe",
        metrics=(("sugarcrepe", "macro"),),
        source="https://github.com/RAIVNLab/sugar-crepe (data/*.json) with COCO's val2017 images",
        also_known_as=("sugar_crepe", "sugar-crepe"),
        read=read_sugarcrepe,
    ),
    Benchmark(
        name="aro",
        metrics=(("aro-relation", "macro"), ("aro-attribution", "macro")),
        source="https://github.com/mertyg/vision-language-models-are-bows (visual_genome_*.json, images)",
        read=read_aro,
    ),
    Benchmark(
        name="aro-coco-order",
        metrics=(("aro-coco-order", "micro"),),
        source="COCO as for the retrieval suite: the wrong orders are generated",
        also_known_as=("mscoco_captions", "coco", "mscoco"),
        read=_order,
    ),
    Benchmark(
        name="aro-flickr30k-order",
        metrics=(("aro-flickr30k-order", "micro"),),
        source="Flickr30k as for the retrieval suite: the wrong orders are generated",
        also_known_as=("flickr30k",),
        read=_order,
    ),
    Benchmark(
        name="valse",
        metrics=(("valse", "macro"),),
        source="https://github.com/Heidelberg-NLP/VALSE (data/*.json) with the images its README names",
        also_known_as=("VALSE",),
        read=read_valse,
    ),
)
"""Correct captions among minimally wrong ones."""

SUITES: dict[str, tuple[Benchmark, ...]] = {
    "classification": CLASSIFICATION,
    "robustness": ROBUSTNESS,
    "imagenet": IMAGENET,
    "retrieval": RETRIEVAL,
    "compositionality": COMPOSITIONALITY,
}


PLACES: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    suite: {suite: tuple(place for benchmark in benchmarks for place in benchmark.metrics)}
    for suite, benchmarks in SUITES.items()
}
"""The averages of each suite by name, and the task and metric of everything that belongs to them."""
PLACES["classification"]["classification, CLIP's metrics"] = tuple(CLIP_METRICS.items())

PUBLIC = {task for of_suite in PLACES.values() for places in of_suite.values() for task, _ in places}
"""Tasks of the public suites."""

HEADLINES = ("acc@1", "mAP", "i2t_R@1", "t2i_R@1", "macro", "group", "text", "image")
"""Metrics that stand for a task in short tables. A task is judged by the first of these that it has, retrieval by the
R@1 of both directions."""

POWERSET = "-powerset"
"""At the end of a task's name: its results by the powerset score."""

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
    found = {label: mean for suite in suites if suite in SUITES for label, mean in average(suite, results).items()}
    for label, mean in family_averages(results).items():
        found[label if label not in found else f"{label}, other tasks"] = mean
    return found


def family_averages(results: Mapping[str, Mapping[str, float]]) -> dict[str, Average]:
    """Averages over the tasks outside the public suites by family, if it has two or more metrics; those measured by the
    powerset score have their own."""
    found = {}
    for family, names in FAMILIES.items():
        for suffix, by_powerset in (("", False), (", powerset score", True)):
            places = [
                (task, metric)
                for task, metrics in results.items()
                for metric in metrics
                if metric in names
                and task not in PUBLIC
                and not task.removesuffix(POWERSET).endswith(ALL_CAPTIONS)
                and task.endswith(POWERSET) == by_powerset
            ]
            if len(places) > 1:
                found[family + suffix] = _mean(results, places)
    return found


def average(suite: str, results: Mapping[str, Mapping[str, float]]) -> dict[str, Average]:
    """A suite's averages by name: its own and, for classification, by the metrics of Radford et al. (2021)."""
    return {name: _mean(results, places) for name, places in PLACES[suite].items()}


def _mean(results: Mapping[str, Mapping[str, float]], places: Sequence[tuple[str, str]]) -> Average:
    over = tuple((task, metric) for task, metric in places if metric in results.get(task, {}))
    value = sum(results[task][metric] for task, metric in over) / len(over) if over else None
    return Average(value=value, measured=len(over), expected=len(places), over=over)
