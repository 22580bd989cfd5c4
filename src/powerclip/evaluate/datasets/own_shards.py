"""Evaluation on your own shards."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from powerclip.data.images import decode_image
from powerclip.data.index import open_index
from powerclip.data.loader import open_data
from powerclip.data.shards import SamplePlace
from powerclip.data.validate import check_regions
from powerclip.distributed import rank
from powerclip.errors import BadSampleError, PowerclipError, counted, printable
from powerclip.evaluate.datasets.images import ShardImage
from powerclip.tasks import Masks, Retrieval

MAX_MASKS = 32
"""The stored masks of an image that are looked at are those of the highest scores, at most this many."""


@dataclass(frozen=True)
class ShardMasks:
    """The stored masks of one sample of a shard."""

    entry: SamplePlace

    def __call__(self) -> Iterator[NDArray[np.bool_]]:
        """(H, W) bool each: the masks with the highest scores, at most ``MAX_MASKS``.

        PowerclipError if the shard cannot be read any more.
        """
        try:
            regions = self.entry.read().regions
        except BadSampleError as error:
            raise PowerclipError(
                f"the masks of sample {self.entry.key} in {self.entry.shard} cannot be read ({error}); "
                "do not change shards while they are evaluated"
            ) from error
        assert regions is not None
        return regions.each(regions.best(MAX_MASKS))


def retrieval_from_shards(path: Path | str, *, limit: int | None = None) -> Retrieval:
    """Image-text retrieval among the usable samples at a path, or the first ``limit``, with all captions of each.

    Others, and those whose stored regions are malformed or not of the image's size, are skipped with a warning. It is a
    folder of shards, one tar, or a pattern. Every image is opened once, alone, to see that it is usable; the task holds
    where the images are, not the images. PowerclipError if there are no shards, or no usable pair.
    """
    images: list[ShardImage] = []
    captions: list[tuple[str, ...]] = []
    masks: list[Masks | None] = []
    bad: Counter[str] = Counter()
    for entry in (place for shard in open_data(path).shards for place in open_index(shard)):
        try:
            sample = entry.read()
            image = decode_image(sample.image)
            if sample.regions is not None:
                check_regions(sample.regions, (image.height, image.width), sample.regions.best(MAX_MASKS))
        except BadSampleError as error:
            bad[str(error)] += 1
            continue
        images.append(ShardImage.of(entry, content=hashlib.sha256(sample.image).hexdigest(), pixels="training"))
        captions.append(tuple(caption.text for caption in sample.captions))
        masks.append(None if sample.regions is None else ShardMasks(entry))
        if len(images) == limit:
            break
    if not images:
        reasons = f" ({counted(bad)})" if bad else ""
        raise PowerclipError(f"no usable image-caption pair in {path}{reasons}; see powerclip prepare")
    if bad and rank() == 0:  # all processes read all
        warnings.warn(
            f"not evaluated of {printable(str(path))}: {counted(bad)}; evaluated: {len(images)}", stacklevel=2
        )
    return Retrieval(name="retrieval", images=images, captions=captions, masks=masks)
