"""Data sets in clip_benchmark's WebDataset layout.

``FOLDER/test/nshards.txt`` and ``FOLDER/test/0.tar, 1.tar, ...`` (other splits in other folders) of
``KEY.jpg|jpeg|png|webp`` with ``KEY.cls`` (a class number), ``KEY.npy`` (0 or 1 for each class) or ``KEY.txt`` (one
caption per line); next to ``test``, ``classnames.txt``, ``zeroshot_classification_templates.txt`` and
``dataset_type.txt`` (multilabel or retrieval; classification if it is missing).
"""

import io
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from powerclip.data.shards import SamplePlace, index_shard
from powerclip.errors import BadSampleError, PowerclipError, counted
from powerclip.evaluate.datasets.images import ShardImage, identity
from powerclip.evaluate.datasets.prompts import benchmark_prompts
from powerclip.evaluate.datasets.release import as_text, release_text
from powerclip.tasks import PLACE, Classification, MultiLabel, Picture, Retrieval, Task

FIVE_CAPTIONS = "-five-captions"
"""At the end of a task's name: the protocol that takes the first five captions of an image."""

CAPTIONS_PER_IMAGE = 5
"""A few images of COCO have six or seven captions."""


def is_webdataset(folder: Path, split: str = "test") -> bool:
    """Whether a folder has a split in this layout."""
    return (folder / split / "nshards.txt").is_file()


def read_webdataset(folder: Path, name: str, split: str = "test") -> list[Task]:
    """The task of a split in a folder, under a name; two for retrieval with more than five captions of an image.

    PowerclipError if a file is missing or has another format.
    """
    kind = _lines(folder / "dataset_type.txt", default=["classification"])[0].lower()
    entries = _entries(folder / split)
    pictures: list[Picture] = [ShardImage.of(entry) for entry in entries]
    if kind == "retrieval":
        texts = [_text(entry).splitlines() for entry in entries]
        return retrieval_tasks(name, pictures, [[text for text in of_image if text.strip()] for of_image in texts])
    classes, templates = _prompts(folder, name)
    if kind == "multilabel":
        targets = [_targets(entry, classes=len(classes)) for entry in entries]
        return [MultiLabel(name=name, images=pictures, targets=targets, class_names=classes, templates=templates)]
    if kind != "classification":
        raise PowerclipError(
            f"{folder / 'dataset_type.txt'} says {kind[:40]!r}; expected classification, multilabel, retrieval"
        )
    labels = [_label(entry, classes=len(classes)) for entry in entries]
    return [Classification(name=name, images=pictures, labels=labels, class_names=classes, templates=templates)]


def retrieval_tasks(name: str, images: list[Picture], captions: list[list[str]]) -> list[Task]:
    """All captions, as clip_benchmark and papers report; five of each image as a second task if one has more.

    PowerclipError if an image has no caption.
    """
    without = next((i for i, of_image in enumerate(captions) if not of_image), None)
    if without is not None or not images:
        what = "has no image" if without is None else f"has no caption for {identity(images[without])}"
        raise PowerclipError(f"the data set {name} {what}; download it again")
    tasks: list[Task] = [Retrieval(name=name, images=images, captions=captions)]
    if any(len(of_image) > CAPTIONS_PER_IMAGE for of_image in captions):
        five = [of_image[:CAPTIONS_PER_IMAGE] for of_image in captions]
        tasks.append(Retrieval(name=f"{name}{FIVE_CAPTIONS}", images=images, captions=five))
    return tasks


def _entries(folder: Path) -> list[SamplePlace]:
    text = _lines(folder / "nshards.txt")[0]
    if not re.fullmatch("[1-9][0-9]{0,9}", text):
        raise PowerclipError(f"{folder / 'nshards.txt'} says {text[:40]!r}; expected the number of shards")
    shards = []
    for number in range(int(text)):  # which may be any: the first that is missing ends it
        shards.append(folder / f"{number}.tar")
        if not shards[-1].is_file():
            raise PowerclipError(f"{folder} lacks {shards[-1].name} of its {text} shards; download it, and the rest")
    ignored: Counter[str] = Counter()
    entries = [entry for shard in shards for entry in index_shard(shard, ignored)]
    del ignored["hidden"]
    if ignored:
        warnings.warn(f"files in the shards of {folder} that are not read: {counted(ignored)}", stacklevel=3)
    return entries


def _member(entry: SamplePlace, extension: str) -> bytes:
    if extension not in entry.members:
        found = ", ".join(sorted(entry.members))
        raise PowerclipError(
            f"sample {entry.key} of {entry.shard} has {found}; expected KEY.{extension} next to the image"
        )
    try:
        return entry.files(only={extension})[extension]
    except BadSampleError as error:
        raise PowerclipError(
            f"KEY.{extension} of sample {entry.key} in {entry.shard} cannot be read ({error}); download the shard again"
        ) from error


def _text(entry: SamplePlace) -> str:
    return as_text(_member(entry, "txt"), f"KEY.txt of sample {entry.key} in {entry.shard}")


def _label(entry: SamplePlace, *, classes: int) -> int:
    text = _member(entry, "cls").decode("utf-8-sig", "replace").strip()
    if not text.isdecimal() or int(text) >= classes:
        raise PowerclipError(
            f"KEY.cls of sample {entry.key} in {entry.shard} is {text!r}; "
            f"expected a number from 0 to {classes - 1}, as there are {classes} class names"
        )
    return int(text)


def _targets(entry: SamplePlace, *, classes: int) -> list[int]:
    try:
        values = np.load(io.BytesIO(_member(entry, "npy")), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PowerclipError(f"KEY.npy of sample {entry.key} in {entry.shard} cannot be read ({error})") from error
    if values.shape != (classes,) or not np.isin(values, (0, 1)).all():
        raise PowerclipError(
            f"KEY.npy of sample {entry.key} in {entry.shard} has shape {values.shape} and values from "
            f"{values.min(initial=0)} to {values.max(initial=0)}; expected 0 or 1 for each of {classes} class names"
        )
    return [int(value) for value in values]


def _prompts(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """The folder's own class names and templates; what it lacks comes from clip_benchmark."""
    classes, templates = own_prompts(folder)
    if not classes and name == "caltech101":
        raise PowerclipError(
            f"{folder} lacks classnames.txt, and there are two orders of Caltech-101's classes "
            "(torchvision's and VTAB's, which differ in 67 places); add the file of wds_vtab-caltech101"
        )
    if not classes or not templates:
        known_classes, known_templates = benchmark_prompts(name)
        classes, templates = classes or known_classes or [], templates or known_templates or []
    for what, values in (("classnames.txt", classes), ("zeroshot_classification_templates.txt", templates)):
        if not values:
            raise PowerclipError(
                f"{folder} lacks {what}, and clip_benchmark does not know {name}; "
                "add the file, or pip install clip-benchmark"
            )
    return classes, templates


def own_prompts(folder: Path) -> tuple[list[str], list[str]]:
    """The class names and templates in a folder's files; empty where there is no file. PowerclipError if one is bad."""
    path = folder / "zeroshot_classification_templates.txt"
    templates = [_template(path, text) for text in _lines(path, default=[])]
    path = folder / "classnames.txt"
    names = _lines(path, default=[])
    if "" in names:
        raise PowerclipError(f"line {names.index('') + 1} of {path} is empty; write a class name in each line")
    return names, templates


def _template(path: Path, text: str) -> str:
    """A prompt with ``PLACE`` where the class name goes; ``{}``, the notation of CLIP and open_clip, is read too."""
    template = text.replace("{}", PLACE)
    if PLACE not in template:
        raise PowerclipError(
            f"{path} has the prompt {text[:200]!r} without a place for the class name; write {PLACE} there"
        )
    return template


def _lines(path: Path, default: list[str] | None = None) -> list[str]:
    """Stripped lines, without empty ones at the end."""
    if default is not None and not path.is_file():
        return default
    lines = [line.strip() for line in release_text(path).rstrip().splitlines()]
    if not lines:
        raise PowerclipError(f"{path} is empty")
    return lines
