"""The image-caption pairs that a report shows: from the runs' own data, or generated scenes."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.sample import Sample
from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError
from powerclip.phrases import whole_caption_tree
from powerclip.phrases.tree import PhraseTree
from powerclip.runs import RunFolder
from powerclip.scenes import generate

CANDIDATES = 60
"""Pairs at the start of a source among which the shown ones are spaced evenly."""

SCENES_SEED = 7


class Pair(NamedTuple):
    """An image (RGB), its caption, and the caption's phrases: the complete caption as one if it was not parsed."""

    image: Image.Image
    caption: str
    tree: PhraseTree


def own_pairs(runs: Mapping[str, Path], *, count: int) -> tuple[list[Pair], list[str]]:
    """Up to ``count`` pairs of the runs' data, an equal share of each source, and why others could not be used."""
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
    found: list[list[Pair]] = []
    for source in sources:
        if "://" in source:
            notes.append(f"The data at {source} are remote, and a report downloads nothing.")
            continue
        try:
            samples = list(islice(read_shards(source), CANDIDATES))
        except (PowerclipError, OSError) as error:
            notes.append(f"The data at {source} cannot be read: {error}.")
        else:
            found.append(_pairs(samples[:: max(1, len(samples) // count)]))
    share = -(-count // max(1, len(found)))
    return [pair for pairs in found for pair in pairs[:share]][:count], notes


def scene_pairs(*, count: int, image_size: int) -> list[Pair]:
    """Generated test scenes of (image_size, image_size) pixels, the same every time."""
    return _pairs(generate("test", count=count, seed=SCENES_SEED, image_size=image_size))


def _pairs(samples: Iterable[Sample]) -> list[Pair]:
    """Those of the samples whose images can be decoded."""
    pairs = []
    for sample in samples:
        with suppress(ValueError):  # which BadSampleError is
            tree = sample.tree or whole_caption_tree(sample.caption)
            pairs.append(Pair(decode_image(sample.image), sample.caption, tree))
    return pairs
