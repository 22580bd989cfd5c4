"""Segmentation sets, by the lists and settings of SCLIP (Wang et al., 2024)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.benchmark import Benchmark
from powerclip.evaluate.datasets.prompts import imagenet_templates
from powerclip.evaluate.datasets.release import Release, release_text
from powerclip.tasks import IGNORED, Segmentation, Task


@dataclass(frozen=True, kw_only=True)
class Form:
    """Where a data set's files are; ``{}`` is an image's name."""

    classes: int
    images: str
    labels: str
    listed: str = ""
    """The list of images; without one, those that have labels in a folder ``within``."""
    within: str = ""
    unlabelled: bool = False
    """Label 0 means no class, and the first class is 1."""
    short_side: int = 336
    logit_scale: float = 40.0
    least_probability: float = 0.0
    least_area: float = 0.0


VOC: dict[str, Any] = {
    "images": "JPEGImages/{}.jpg",
    "labels": "SegmentationClass/{}.png",
    "listed": "Segmentation/val.txt",
}
CONTEXT: dict[str, Any] = {
    "images": "JPEGImages/{}.jpg",
    "labels": "SegmentationClassContext/{}.png",
    "listed": "SegmentationContext/val.txt",
}

SETS = {
    "voc20": Form(classes=20, **VOC, unlabelled=True),
    "voc21": Form(classes=21, **VOC, logit_scale=65.0, least_probability=0.1, least_area=0.1),
    "context59": Form(classes=59, **CONTEXT, unlabelled=True),
    "context60": Form(classes=60, **CONTEXT, logit_scale=50.0, least_probability=0.1),
    "coco_object": Form(
        classes=81,
        images="{}.jpg",
        labels="{}_instanceTrainIds.png",
        within="val2017",
        logit_scale=50.0,
        least_probability=0.1,
    ),
    "coco_stuff": Form(classes=171, images="{}.jpg", labels="{}_labelTrainIds.png", within="val2017", short_side=448),
    "ade20k": Form(classes=150, images="{}.jpg", labels="{}.png", within="validation", unlabelled=True),
    "city_scapes": Form(
        classes=19,
        images="{}_leftImg8bit.png",
        labels="{}_gtFine_labelTrainIds.png",
        within="val",
        short_side=560,
    ),
}
"""The eight sets by the names of SCLIP's files of classes."""


@dataclass(frozen=True)
class Labels:
    """The labels of an image in a PNG file."""

    path: Path
    classes: int
    unlabelled: bool

    def __call__(self) -> NDArray[np.int64]:
        """(H, W) class numbers, ``IGNORED`` where there is none; PowerclipError if the file has others."""
        try:
            with Image.open(self.path) as image:
                values = np.array(image).astype(np.int64)
        except (OSError, ValueError) as error:
            raise PowerclipError(f"{self.path} cannot be read ({error}); download it again") from error
        if self.unlabelled and values.ndim == 2:
            values = np.where((values == 0) | (values == IGNORED), IGNORED, values - 1)
        if values.ndim != 2 or (values[values != IGNORED] >= self.classes).any():
            raise PowerclipError(
                f"{self.path} has shape {values.shape} and labels up to {values.max()}; expected (H, W) and "
                f"{self.classes} classes"
            )
        return values


def read_segmentation(folder: Path, name: str) -> list[Task]:
    """One of the eight sets, with the class names of ``cls_NAME.txt``: a class a line, synonyms separated by commas."""
    release, form = Release(folder), SETS[name]
    file = release.file(f"cls_{name}.txt")
    lines = release_text(file).strip().splitlines()
    classes = [[word.strip() for word in line.split(",")] for line in lines]
    if len(classes) != form.classes or not all(all(words) for words in classes):
        raise PowerclipError(
            f"{file} has {len(classes)} lines; expected the names of {form.classes} classes, one a line"
        )
    if form.listed:
        names = release_text(release.file(form.listed)).split()
        labels = [release.file(form.labels.format(name)) for name in names]
    else:
        labels = release.files(form.labels.format("*"))
        labels = [path for path in labels if form.within in path.relative_to(folder).parts]
        names = [path.name.removesuffix(form.labels.format("")) for path in labels]
    if not names:
        raise PowerclipError(f"{folder} holds no labels {form.labels.format('*')} in a folder {form.within}; add them")
    return [
        Segmentation(
            name=name,
            images=release.images([form.images.format(name) for name in names]),
            truths=[Labels(path, form.classes, form.unlabelled) for path in labels],
            class_names=classes,
            templates=imagenet_templates(),
            short_side=form.short_side,
            logit_scale=form.logit_scale,
            least_probability=form.least_probability,
            least_area=form.least_area,
        )
    ]


VOC_FOLDERS = ("voc2012", "VOC2012", "VOCdevkit")
CONTEXT_FOLDERS = ("pascal_context", "VOC2010", "VOCdevkit")

SEGMENTATION = tuple(
    Benchmark(
        name,
        read_segmentation,
        f"{source}, with cls_{name}.txt of https://github.com/wangf3014/SCLIP (configs)",
        averaged=("mIoU",),
        also_known_as=names,
        items=items,
    )
    for name, source, items, names in (
        ("voc20", "VOC2012", (1449,), VOC_FOLDERS),
        ("voc21", "VOC2012", (1449,), VOC_FOLDERS),
        ("context59", "Pascal Context, as mmsegmentation converts it", (), CONTEXT_FOLDERS),
        ("context60", "Pascal Context, as mmsegmentation converts it", (), CONTEXT_FOLDERS),
        ("coco_object", "COCO's val2017, converted by SCLIP's cvt_coco_object.py", (5000,), ("coco-object",)),
        ("coco_stuff", "COCO-Stuff164k, as mmsegmentation converts it", (5000,), ("coco_stuff164k",)),
        ("ade20k", "ADEChallengeData2016", (2000,), ("ADEChallengeData2016", "ade")),
        ("city_scapes", "Cityscapes, as mmsegmentation converts it", (500,), ("cityscapes",)),
    )
)
"""Zero-shot segmentation, by mIoU."""
