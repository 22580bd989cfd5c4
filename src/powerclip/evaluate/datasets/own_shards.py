"""Evaluation on one's own shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from powerclip.data.images import decode_image
from powerclip.data.loader import open_data
from powerclip.data.shards import read_shards
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.regions import RegionAnnotation
from powerclip.tasks import Masks, Retrieval

MAX_MASKS = 32
"""Of an image's stored masks, those of the highest scores that are looked at."""


def retrieval_from_shards(path: Path | str, *, limit: int | None = None) -> Retrieval:
    """Image-text retrieval among the usable pairs at a path; a sample that cannot be used is passed over.

    Args:
        path: a folder of shards, one tar, or a pattern.
        limit: the first so many usable pairs; all by default.

    Raises:
        PowerclipError: no shards, or no usable pair.
    """
    open_data(path)
    pairs = []
    for sample in read_shards(path):
        try:
            pairs.append((decode_image(sample.image), sample.caption, sample.regions))
        except BadSampleError:
            continue
        if len(pairs) == limit:
            break
    if not pairs:
        raise PowerclipError(f"no usable image-caption pair in {path}; see powerclip prepare")
    return Retrieval(
        name="retrieval",
        images=[image for image, _, _ in pairs],
        captions=[(caption,) for _, caption, _ in pairs],
        masks=[None if regions is None else _masks(regions) for _, _, regions in pairs],
    )


def _masks(regions: RegionAnnotation) -> Masks:
    best = sorted(range(len(regions.rles)), key=lambda m: -regions.scores[m])
    return partial(regions.masks, best[:MAX_MASKS])
