"""Evaluation on your own shards."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from powerclip.data.images import decode_image
from powerclip.data.index import open_index
from powerclip.data.loader import open_data
from powerclip.data.shards import SamplePlace
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.evaluate.datasets.images import ShardImage
from powerclip.tasks import Masks, Retrieval

MAX_MASKS = 32
"""The stored masks of an image that are looked at are those of the highest scores, at most this many."""


@dataclass(frozen=True)
class ShardMasks:
    """The stored masks of one sample of a shard."""

    entry: SamplePlace

    def __call__(self) -> Iterator[NDArray[np.bool_]]:
        """(H, W) bool each: the masks with the highest scores, at most ``MAX_MASKS``."""
        regions = self.entry.read().regions
        assert regions is not None
        return regions.each(regions.best(MAX_MASKS))


def retrieval_from_shards(path: Path | str, *, limit: int | None = None) -> Retrieval:
    """Image-text retrieval among the usable samples at a path, or the first ``limit``, with all captions of each.

    Others are skipped. The path is a folder of shards, one tar, or a pattern. Every image is opened once, alone, to
    see that it is usable; the task holds where the images are, not the images. PowerclipError if there are no
    shards, or no usable pair.
    """
    images: list[ShardImage] = []
    captions: list[tuple[str, ...]] = []
    masks: list[Masks | None] = []
    for entry in (place for shard in open_data(path).shards for place in open_index(shard)):
        try:
            sample = entry.read()
            decode_image(sample.image)
        except BadSampleError:
            continue
        images.append(ShardImage.of(entry, content=hashlib.sha256(sample.image).hexdigest(), pixels="training"))
        captions.append(tuple(caption.text for caption in sample.captions))
        masks.append(None if sample.regions is None else ShardMasks(entry))
        if len(images) == limit:
            break
    if not images:
        raise PowerclipError(f"no usable image-caption pair in {path}; see powerclip prepare")
    return Retrieval(name="retrieval", images=images, captions=captions, masks=masks)
