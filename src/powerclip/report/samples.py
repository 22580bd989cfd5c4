"""What a report shows models: pairs of the runs' own data, tasks that they were evaluated on, or generated scenes."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.sample import Sample
from powerclip.data.shards import read_shards
from powerclip.data.validate import check_regions
from powerclip.errors import PowerclipError
from powerclip.evaluate import Evaluation, retrieval_from_shards, task_again
from powerclip.phrases import tree_or_whole
from powerclip.phrases.tree import PhraseTree
from powerclip.regions import RegionAnnotation
from powerclip.runs import RunFolder
from powerclip.scenes import evaluation_tasks, generate
from powerclip.tasks import HardNegatives, Retrieval

CANDIDATES = 60
"""Pairs at the start of a source among which the shown ones are spaced evenly."""

SCENES_SEED = 7

TaskOf = TypeVar("TaskOf", Retrieval, HardNegatives)


class Pair(NamedTuple):
    """An image (RGB), its caption,
    the caption's phrases (the complete caption as one if it was not parsed), regions."""

    image: Image.Image
    caption: str
    tree: PhraseTree
    regions: RegionAnnotation | None = None


def own_pairs(runs: Mapping[str, Path], *, count: int) -> tuple[list[Pair], list[str]]:
    """Up to ``count`` pairs of the runs' data, an equal share of each source, and why others could not be used.

    No image of a source is shown that an earlier one has shown: the same data may have been prepared twice.
    """
    sources, notes = own_sources(runs)
    found: list[list[Pair]] = []
    for source in sources:
        try:
            samples = list(islice(read_shards(source), CANDIDATES))
        except (PowerclipError, OSError) as error:
            notes.append(f"The data at {source} cannot be read: {error}.")
        else:
            found.append(_pairs(samples[:: max(1, len(samples) // count)]))
    share = -(-count // max(1, len(found)))
    shown: list[Pair] = []
    for pairs in found:
        seen = {pair.image.tobytes() for pair in shown}
        shown += [pair for pair in pairs if pair.image.tobytes() not in seen][:share]
    return shown[:count], notes


def scene_pairs(*, count: int, image_size: int) -> list[Pair]:
    """Generated test scenes of (image_size, image_size) pixels, the same every time."""
    return _pairs(generate("test", count=count, seed=SCENES_SEED, image_size=image_size))


def task_to_show(
    kind: type[TaskOf], runs: Mapping[str, Path], evaluations: Iterable[Evaluation], *, size: int, image_size: int
) -> tuple[TaskOf, str]:
    """A task to show examples of, and what it is in words.

    It is the first of that kind that a run was evaluated on, pairs first; otherwise, for retrieval, pairs of the data
    that a run was trained on, and at last scenes. ``size`` is how many images those that are cut to size have.
    """
    metric = "t2i_R@1" if kind is Retrieval else "micro"
    measured = {
        name: origin
        for one in evaluations
        for name, origin in one.measured_on.items()
        if metric in one.tasks.get(name, {})
    }
    for name, origin in sorted(measured.items(), key=lambda item: item[1].suite != "pairs"):
        with suppress(PowerclipError, OSError):
            if isinstance(task := task_again(name, origin, size=size), kind):
                return task, f"from {task.name}, on which the results above were measured"
    for source in own_sources(runs)[0] if kind is Retrieval else ():
        with suppress(PowerclipError, OSError):
            task = retrieval_from_shards(source, limit=size)
            assert isinstance(task, kind)
            return task, f"from the start of the data that the models were trained on, {source}"
    tasks = evaluation_tasks(seed=SCENES_SEED, size=size, image_size=image_size)
    return next(task for task in tasks if isinstance(task, kind)), "generated scenes"


def own_sources(runs: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """The local sources of the data that runs were trained on, once each, and why others are missing."""
    sources: dict[str, None] = {}
    notes = []
    for name, run in runs.items():
        data = None
        with suppress(OSError, ValueError):
            data = RunFolder(run).data()
        if data is None:
            notes.append(f"{name} does not say which data it was trained on.")
        else:
            sources |= dict.fromkeys(data.sources)
    notes += [
        f"The data at {source} are remote, and a report downloads nothing." for source in sources if "://" in source
    ]
    return [source for source in sources if "://" not in source], notes


def _pairs(samples: Iterable[Sample]) -> list[Pair]:
    """Those of the samples whose images can be decoded and whose regions fit them."""
    pairs = []
    for sample in samples:
        with suppress(ValueError):  # which BadSampleError is
            tree = tree_or_whole(sample.caption, sample.tree)
            image = decode_image(sample.image)
            if sample.regions is not None:
                check_regions(sample.regions, (image.height, image.width))
            pairs.append(Pair(image, sample.caption, tree, sample.regions))
    return pairs
