"""The suites: which public data sets, the metrics each is read by, where to get them, and all averages of results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.aro_order import order_task
from powerclip.evaluate.datasets.clip_benchmark import FIVE_CAPTIONS, is_webdataset, read_webdataset
from powerclip.evaluate.datasets.fine_grained import (
    NEGBENCH,
    read_bivlc,
    read_cola,
    read_colorswap,
    read_crepe,
    read_eqben,
    read_mmvp,
    read_negbench,
    read_spec,
    read_sugarcrepe_pp,
    read_svo_probes,
    read_vl_checklist,
    read_whatsup,
)
from powerclip.evaluate.datasets.imagenet import read_imagenet, read_objectnet
from powerclip.evaluate.datasets.linear_probe import PROBE, read_linear_probe
from powerclip.evaluate.datasets.long_captions import read_long_captions
from powerclip.evaluate.datasets.regions import read_boxes, read_fg_ovd
from powerclip.evaluate.datasets.releases import read_aro, read_karpathy, read_sugarcrepe, read_valse, read_winoground
from powerclip.evaluate.datasets.segmentation import read_segmentation
from powerclip.tasks import Classification, MultiLabel, Retrieval, Task

Reader = Callable[[Path, str], list[Task]]

HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class Benchmark:
    """One data set of a suite, and the ``source`` to get it from."""

    name: str
    """The name of the data set and, by default, of its task."""
    averaged: tuple[str, ...]
    """The metrics that are averaged over the suite; none if it has no average."""
    read: Reader
    """Reads its tasks, given its folder and name; raises PowerclipError if it cannot."""
    source: str
    also_known_as: tuple[str, ...] = ()
    """Other names of its folder."""
    tasks: tuple[str, ...] = ()
    """Its tasks, if they have other names."""
    items: tuple[int, ...] = ()
    """How many items (as ``Origin.n``) each task of the complete release has, where that is known."""
    needs: str = ""
    """A folder in its folder, without which it is missing."""

    @property
    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Task and name of each metric that is averaged over the suite."""
        return tuple((task, metric) for task in self.tasks or (self.name,) for metric in self.averaged)

    @property
    def complete(self) -> dict[str, int]:
        """How many items the complete release has, by task."""
        return dict(zip(self.tasks or (self.name,), self.items, strict=False))

    def folder(self, data: Path) -> Path | None:
        """Where the data set is under a folder; None if it, or what it needs, is missing."""
        for name in (self.name, *self.also_known_as):
            for form in (name, f"wds_{name}", f"wds_vtab-{name}", f"vtab-{name}", f"vtab/{name}"):
                if (data / form / self.needs).is_dir():
                    return data / form
        return None


def _either(folder: Path, name: str, *, release: Reader, kind: type[Task]) -> list[Task]:
    """Tasks in clip_benchmark's layout if the folder has it, otherwise in the release's; all of one kind."""
    tasks = read_webdataset(folder, name) if is_webdataset(folder) else release(folder, name)
    if other := next((task for task in tasks if not isinstance(task, kind)), None):
        hint = "; the set with several labels an image is voc2007_multilabel" if name == "voc2007" else ""
        raise PowerclipError(
            f"{folder} holds a {type(other).__name__} task; expected {kind.__name__} for {name}{hint}; look at its "
            "dataset_type.txt, or name the folder otherwise"
        )
    return tasks


def _no_release(folder: Path, name: str) -> list[Task]:
    raise PowerclipError(
        f"{folder} is not in clip_benchmark's layout (no test/nshards.txt); get {name} from {HUB}/clip-benchmark, or "
        "convert it with clip_benchmark_export_wds"
    )


def _order(folder: Path, name: str) -> list[Task]:
    captions = _either(folder, name, release=read_karpathy, kind=Retrieval)[0]
    assert isinstance(captions, Retrieval)
    return [order_task(name, captions)]


def _classes(hub: str, items: int, name: str = "", *names: str, release: Reader = _no_release) -> Benchmark:
    """A classification set that the hub has in clip_benchmark's layout."""
    read = partial(_either, release=release, kind=Classification)
    return Benchmark(
        name or hub.removeprefix("vtab-"), ("acc@1",), read, f"{HUB}/clip-benchmark/wds_{hub}", names, items=(items,)
    )


ON_HUB = {
    "food101": 25250,
    "vtab-cifar10": 10000,
    "vtab-cifar100": 10000,
    "sun397": 108754,
    "cars": 8041,
    "voc2007": 14976,
    "fgvc_aircraft": 3333,
    "vtab-dtd": 1880,
    "vtab-pets": 3669,
    "vtab-caltech101": 6085,
    "vtab-flowers": 6149,
    "stl10": 8000,
    "vtab-eurosat": 5400,
    "vtab-resisc45": 6300,
    "gtsrb": 12630,
    "country211": 21100,
    "vtab-pcam": 32768,
}
"""The hub's names of the classification sets, and their numbers of test images. voc2007 is the set of cropped objects,
each with one label, as clip_benchmark and the paper's family average it."""

CLASSIFICATION = tuple(_classes(hub, items) for hub, items in ON_HUB.items())
"""The 17 data sets of the paper's family, which are CLIP-PGS's (Pei et al., CVPR 2025), by top-1 accuracy as there."""

CLIP_METRICS = {benchmark.name: "acc@1" for benchmark in CLASSIFICATION} | dict.fromkeys(
    ("fgvc_aircraft", "pets", "caltech101", "flowers"), "mean_per_class"
)
"""The metric that Radford et al. (2021) report for each of the 17: mean per class for four of them."""


MULTILABEL = (
    Benchmark(
        "voc2007_multilabel",
        ("mAP",),
        partial(_either, release=_no_release, kind=MultiLabel),
        f"{HUB}/clip-benchmark/wds_voc2007_multilabel",
        items=(4952,),
    ),
)
"""Images with several labels."""


def _imagenet(name: str, items: int, classes: int, *names: str) -> Benchmark:
    return _classes(name, items, name, *names, release=partial(read_imagenet, classes=classes))


ROBUSTNESS = (
    _imagenet("imagenetv2", 10000, 1000, "imagenet-v2", "imagenetv2-matched-frequency-format-val"),
    _imagenet("imagenet_sketch", 50889, 1000, "imagenet-sketch", "sketch"),
    _imagenet("imagenet-a", 7500, 200),
    _imagenet("imagenet-r", 30000, 200),
    _imagenet("imagenet-o", 2000, 200),
    replace(
        _classes("objectnet", 18574, "objectnet", "objectnet-1.0", release=read_objectnet),
        source=f"{HUB}/clip-benchmark/wds_objectnet or https://objectnet.dev",
    ),
)
"""Six test sets with ImageNet's classes."""

IMAGENET = (_imagenet("imagenet1k", 50000, 1000, "imagenet", "ILSVRC2012"),)
"""ImageNet's validation images (``val/`` with class folders, or clip_benchmark's layout)."""

LINEAR_PROBE = tuple(
    replace(
        benchmark,
        name=f"{benchmark.name}{PROBE}",
        read=partial(read_linear_probe, release=partial(read_imagenet, classes=1000) if imagenet else _no_release),
        also_known_as=(benchmark.name, *benchmark.also_known_as),
        needs="train",
    )
    for benchmarks, imagenet in ((CLASSIFICATION, False), (IMAGENET, True))
    for benchmark in benchmarks
)
"""A linear classifier trained on the embeddings of the training images: 18 of the sets above that have such images."""

RETRIEVAL = tuple(
    Benchmark(
        name,
        ("i2t_R@1", "t2i_R@1"),
        partial(_either, release=read_karpathy, kind=Retrieval),
        f"{HUB}/clip-benchmark/wds_{name}, or Karpathy's dataset_*.json (also BLIP's or clip_benchmark's) with the images",
        tuple(names),
        items=(items,),
    )
    for name, items, *names in (
        ("mscoco_captions", 5000, "coco", "mscoco"),
        ("flickr30k", 1000),
        ("flickr8k", 1000),
    )
)
"""Both directions of each: the paper's six settings, on all captions of Karpathy's test splits."""

GENERATED = "as for the retrieval suite: the wrong orders are generated"

COMPOSITIONALITY = (
    Benchmark(
        "winoground",
        ("text", "image", "group"),
        read_winoground,
        f"{HUB}/facebook/winoground (examples.jsonl, images)",
        items=(400,),
    ),
    Benchmark(
        "sugarcrepe",
        ("macro",),
        read_sugarcrepe,
        "https://github.com/RAIVNLab/sugar-crepe (data/*.json) with COCO's val2017 images",
        ("sugar_crepe", "sugar-crepe"),
        items=(7511,),
    ),
    Benchmark(
        "aro",
        ("macro",),
        read_aro,
        "https://github.com/mertyg/vision-language-models-are-bows (visual_genome_*.json, images)",
        tasks=("aro-relation", "aro-attribution"),
        items=(23937, 28748),
    ),
    Benchmark(
        "aro-coco-order", ("micro",), _order, f"COCO {GENERATED}", ("mscoco_captions", "coco", "mscoco"), items=(25010,)
    ),
    Benchmark("aro-flickr30k-order", ("micro",), _order, f"Flickr30k {GENERATED}", ("flickr30k",), items=(5000,)),
    Benchmark(
        "valse",
        ("macro",),
        read_valse,
        "https://github.com/Heidelberg-NLP/VALSE (data/*.json) with the images its README names",
        ("VALSE",),
        items=(7702,),
    ),
)
"""Correct captions among minimally wrong ones."""

FINE_GRAINED = (
    Benchmark(
        "sugarcrepe++",
        (),
        read_sugarcrepe_pp,
        "https://github.com/Sri-Harsha/scpp (data/*.json) with COCO's val2017 images",
        ("SugarCrepe_pp", "scpp"),
        ("sugarcrepe++", "sugarcrepe++-text"),
        (4757, 4757),
    ),
    Benchmark(
        "whatsup",
        (),
        read_whatsup,
        "https://github.com/amitakamath/whatsup_vlms (its six JSON files and images)",
        ("whatsup_vlms",),
        ("whatsup", "whatsup-pairs", "whatsup-sets"),
        (4958, 410, 205),
    ),
    Benchmark(
        "colorswap",
        (),
        read_colorswap,
        f"{HUB}/stanfordnlp/colorswap (its Parquet files, or test.json and images)",
        items=(300,),
    ),
    Benchmark(
        "cola",
        (),
        read_cola,
        "https://github.com/arijitray1993/COLA (data/COLA_multiobjects_matching_benchmark.json) with Visual Genome",
        ("COLA",),
        items=(210,),
    ),
    Benchmark("bivlc", (), read_bivlc, f"{HUB}/imirandam/BiVLC (its Parquet files)", ("BiVLC",), items=(2933,)),
    Benchmark("eqben", (), read_eqben, "https://github.com/Wangt-CN/EqBen (the 10 % subset, or all)", ("EqBen",)),
    Benchmark(
        "mmvp-vlm",
        (),
        read_mmvp,
        f"{HUB}/MMVP/MMVP_VLM (Questions.csv, images)",
        ("MMVP_VLM", "MMVP-VLM"),
        items=(135,),
    ),
    Benchmark(
        "crepe",
        (),
        read_crepe,
        "https://github.com/RAIVNLab/CREPE (data/*.zip, unpacked) with Visual Genome",
        ("CREPE",),
        ("crepe-productivity", *(f"crepe-systematicity-{corpus}" for corpus in ("cc12m", "yfcc", "laion"))),
    ),
    Benchmark("spec", (), read_spec, f"{HUB}/wjpoom/SPEC (data.zip, unpacked)", ("SPEC",), ("spec-i2t", "spec-t2i")),
    Benchmark(
        "vl-checklist",
        (),
        read_vl_checklist,
        "https://github.com/om-ai-lab/VL-CheckList (data) with the images of Visual Genome, HAKE and SWiG",
        ("VL-CheckList",),
        ("vl-checklist-attribute", "vl-checklist-object", "vl-checklist-relation"),
    ),
    Benchmark(
        "svo-probes",
        (),
        read_svo_probes,
        "https://github.com/google-deepmind/svo_probes (svo_probes.csv) with the images of its URLs",
        ("svo_probes",),
    ),
    Benchmark(
        "negbench",
        (),
        read_negbench,
        "https://github.com/m1k2zoo/negbench (its CSV files of images) with COCO's val2017, VOC2007 and the synthetic images",
        ("NegBench",),
        tuple(f"negbench-{part}" for part in NEGBENCH),
    ),
)
"""Compositionality sets beyond the paper's; their metrics are of several kinds, and there is no average."""

LONG_CAPTIONS = tuple(
    Benchmark(name, (), partial(read_long_captions, first=first), source, tuple(names), items=(items,))
    for name, items, first, source, *names in (
        ("urban1k", 1000, None, f"{HUB}/BeichenZhang/Urban1k (image, caption)", "Urban1k", "Urban-1k"),
        ("docci", 5000, None, "https://google.github.io/docci (docci_descriptions.jsonlines, images)", "DOCCI"),
        ("iiw", 612, None, "https://github.com/google/imageinwords with annotations in FLAIR's form", "imageinwords"),
        ("sharegpt4v-1k", 1000, 1000, f"{HUB}/Lin-Chen/ShareGPT4V (share-captioner_*.json) with SA-1B", "sharegpt4v"),
        ("sharegpt4v-10k", 10000, 10000, f"{HUB}/Lin-Chen/ShareGPT4V (the same)", "sharegpt4v"),
        ("dci", 7805, None, "https://github.com/facebookresearch/DCI (annotations, photos)", "DCI"),
    )
)
"""Retrieval with captions that may be longer than a model's context; there is no average."""

REGIONS = (
    Benchmark(
        "fg-ovd",
        (),
        read_fg_ovd,
        "https://github.com/360CVGroup/FG-CLIP (data/fgovd/*.jsonl) with COCO's 2017 images",
        ("fgovd",),
        items=(11357,),
    ),
    Benchmark(
        "coco-boxes",
        (),
        partial(read_boxes, file="instances_val2017.json"),
        "https://cocodataset.org (instances_val2017.json, val2017)",
        ("coco",),
        items=(36781,),
    ),
    Benchmark(
        "lvis-boxes",
        (),
        partial(read_boxes, file="lvis_v1_val.json"),
        "https://www.lvisdataset.org (lvis_v1_val.json) with COCO's 2017 images",
        ("lvis",),
        items=(244707,),
    ),
)
"""Boxes of images against texts; there is no average."""

SEGMENTATION = tuple(
    Benchmark(
        name,
        ("mIoU",),
        read_segmentation,
        f"{source}, with cls_{name}.txt of https://github.com/wangf3014/SCLIP (configs)",
        tuple(names),
        items=items,
    )
    for name, source, items, *names in (
        ("voc20", "VOC2012", (1449,), "voc2012", "VOC2012", "VOCdevkit"),
        ("voc21", "VOC2012", (1449,), "voc2012", "VOC2012", "VOCdevkit"),
        ("context59", "Pascal Context, as mmsegmentation converts it", (), "pascal_context", "VOC2010", "VOCdevkit"),
        ("context60", "Pascal Context, as mmsegmentation converts it", (), "pascal_context", "VOC2010", "VOCdevkit"),
        ("coco_object", "COCO's val2017, converted by SCLIP's cvt_coco_object.py", (5000,), "coco-object"),
        ("coco_stuff", "COCO-Stuff164k, as mmsegmentation converts it", (5000,), "coco_stuff164k"),
        ("ade20k", "ADEChallengeData2016", (2000,), "ADEChallengeData2016", "ade"),
        ("city_scapes", "Cityscapes, as mmsegmentation converts it", (500,), "cityscapes"),
    )
)
"""Zero-shot segmentation, by mIoU."""

SUITES: dict[str, tuple[Benchmark, ...]] = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "robustness": ROBUSTNESS,
    "imagenet": IMAGENET,
    "linear-probe": LINEAR_PROBE,
    "retrieval": RETRIEVAL,
    "compositionality": COMPOSITIONALITY,
    "fine-grained": FINE_GRAINED,
    "long-captions": LONG_CAPTIONS,
    "regions": REGIONS,
    "segmentation": SEGMENTATION,
}

BENCHMARKS = {benchmark.name: benchmark for benchmarks in SUITES.values() for benchmark in benchmarks}
"""All data sets by name."""


def benchmarks_of(name: str) -> tuple[Benchmark, ...]:
    """The data sets of a suite, or the one of that name; none if there is neither."""
    return SUITES.get(name) or ((BENCHMARKS[name],) if name in BENCHMARKS else ())


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
    *("patch", "contribution", "region", "precision", "recall"),
)
"""Metrics that stand for a task in short tables. A task is judged by the first of these that it has, retrieval by the
R@1 of both directions."""

POWERSET = "-powerset"
"""At the end of a task's name: its results by the powerset score."""

POWERSET_STORED = "-powerset-stored"
"""The same over the regions that are stored with the data."""

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
    return name.removesuffix(POWERSET_STORED).removesuffix(POWERSET)


def _family_averages(results: Mapping[str, Mapping[str, float]]) -> dict[str, Average]:
    """Averages over the tasks outside the public suites by family, if it has two or more metrics; those measured by the
    powerset score have their own."""
    labels = {"": "", POWERSET: ", powerset score", POWERSET_STORED: ", powerset score of stored regions"}
    found = {}
    for family, names in FAMILIES.items():
        for suffix, label in labels.items():
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
