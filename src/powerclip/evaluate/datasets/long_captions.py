"""Retrieval with long captions: Urban-1k, DOCCI, IIW, ShareGPT4V and DCI,
in the forms that they are passed around in."""

import glob
from functools import partial
from pathlib import Path
from typing import Any

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.benchmark import HUB, Benchmark
from powerclip.evaluate.datasets.clip_benchmark import retrieval_tasks
from powerclip.evaluate.datasets.release import Release, by_image, distinct, release_json, release_text, texts_in
from powerclip.tasks import Task

FORMS = {
    "*-data.json": "DCI's files, one an image",
    "share*.json": "ShareGPT4V's conversations",
    "*annotations.json": "a list of annotations with image and caption",
    "docci_descriptions.jsonl*": "DOCCI's descriptions, of which the test split is taken",
    "*.txt": "a file for each image, of its name",
}
"""How the captions are stored, by the names of the files."""


def read_long_captions(folder: Path, name: str, *, first: int | None = None) -> list[Task]:
    """Retrieval among all images and captions, or the ``first`` ones; captions are cut at the model's context.

    The form is the first of ``FORMS`` that the folder has. An image may have several captions.
    """
    release = Release(folder)
    pattern = next((pattern for pattern in FORMS if release.files(pattern)), None)
    if pattern is None:
        raise PowerclipError(f"{folder} holds no captions; expected one of {', '.join(FORMS)}")
    rows: list[tuple[str, object]] = []
    paths = release.files(pattern)
    for path in paths if pattern == "*.txt" else distinct(paths):
        if path.suffix == ".txt":
            rows.append((_image_of(release, path), release_text(path).strip()))
            continue
        with release_json(path) as content:
            rows += [(image, texts_in(caption)) for image, caption in _pairs(pattern, content)]
    some = dict(list(by_image(rows).items())[:first])
    return retrieval_tasks(name, list(release.images(list(some))), list(some.values()))[:1]  # all captions


def _pairs(pattern: str, content: Any) -> list[tuple[str, object]]:
    """The images and captions in one file."""
    if pattern == "*-data.json":
        return [(content["image"], f"{content['short_caption']}\n{content['extra_caption']}")]
    if pattern == "share*.json":
        return [(row["image"], row["conversations"][1]["value"]) for row in content]
    if pattern == "*annotations.json":
        return [(row["image"], row["caption"]) for row in content["annotations"]]
    return [(row["image_file"], row["description"]) for row in content if row["split"] == "test"]


def _image_of(release: Release, path: Path) -> str:
    named = [file for file in release.files(f"{glob.escape(path.stem)}.*") if file.stem == path.stem]
    images = [image for image in named if image.suffix != ".txt"]
    if len(images) != 1:
        raise PowerclipError(f"{path} is the caption of {len(images)} images {path.stem}.*; expected one")
    return str(images[0].relative_to(release.folder))


LONG_CAPTIONS = tuple(
    Benchmark(name, partial(read_long_captions, first=first), source, also_known_as=tuple(names), items=(items,))
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
