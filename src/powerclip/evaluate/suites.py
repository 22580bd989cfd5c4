"""The suites: which public data sets, the metrics that each is read by, and where to get them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.aro_order import order_task
from powerclip.evaluate.datasets.benchmark import HUB, Benchmark, Reader
from powerclip.evaluate.datasets.clip_benchmark import is_webdataset, read_webdataset
from powerclip.evaluate.datasets.fine_grained import FINE_GRAINED
from powerclip.evaluate.datasets.imagenet import read_imagenet, read_objectnet
from powerclip.evaluate.datasets.linear_probe import PROBE, read_linear_probe
from powerclip.evaluate.datasets.long_captions import LONG_CAPTIONS
from powerclip.evaluate.datasets.regions import REGIONS
from powerclip.evaluate.datasets.releases import read_aro, read_karpathy, read_sugarcrepe, read_valse, read_winoground
from powerclip.evaluate.datasets.segmentation import SEGMENTATION
from powerclip.tasks import Classification, MultiLabel, Retrieval, Task


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
    name = name or hub.removeprefix("vtab-")
    return Benchmark(name, read, f"{HUB}/clip-benchmark/wds_{hub}", ("acc@1",), names, items=(items,))


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
        partial(_either, release=_no_release, kind=MultiLabel),
        f"{HUB}/clip-benchmark/wds_voc2007_multilabel",
        averaged=("mAP",),
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
        partial(_either, release=read_karpathy, kind=Retrieval),
        f"{HUB}/clip-benchmark/wds_{name}, "
        "or Karpathy's dataset_*.json (also BLIP's or clip_benchmark's) with the images",
        averaged=("i2t_R@1", "t2i_R@1"),
        also_known_as=tuple(names),
        items=(items,),
    )
    for name, items, *names in (
        ("mscoco_captions", 5000, "coco", "mscoco"),
        ("flickr30k", 1000),
        ("flickr8k", 1000),
    )
)
"""Both directions of each: the paper's six settings, on all captions of Karpathy's test splits."""

SOURCES = {
    "winoground": f"{HUB}/facebook/winoground (examples.jsonl, images)",
    "sugarcrepe": "https://github.com/RAIVNLab/sugar-crepe (data/*.json) with COCO's val2017 images",
    "aro": "https://github.com/mertyg/vision-language-models-are-bows (visual_genome_*.json, images)",
    "aro-coco-order": "COCO as for the retrieval suite: the wrong orders are generated",
    "aro-flickr30k-order": "Flickr30k as for the retrieval suite: the wrong orders are generated",
    "valse": "https://github.com/Heidelberg-NLP/VALSE (data/*.json) with the images its README names",
}
"""Where to get the sets of the compositionality suite."""

COMPOSITIONALITY = tuple(
    Benchmark(name, read, SOURCES[name], metrics, names, tuple(f"{name}-{part}" for part in parts), items)
    for name, read, metrics, names, parts, items in (
        ("winoground", read_winoground, ("text", "image", "group"), (), (), (400,)),
        ("sugarcrepe", read_sugarcrepe, ("macro",), ("sugar_crepe", "sugar-crepe"), (), (7511,)),
        ("aro", read_aro, ("macro",), (), ("relation", "attribution"), (23937, 28748)),
        ("aro-coco-order", _order, ("micro",), ("mscoco_captions", "coco", "mscoco"), (), (25010,)),
        ("aro-flickr30k-order", _order, ("micro",), ("flickr30k",), (), (5000,)),
        ("valse", read_valse, ("macro",), ("VALSE",), (), (7702,)),
    )
)
"""Correct captions among minimally wrong ones."""

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
