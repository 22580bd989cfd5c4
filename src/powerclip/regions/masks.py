"""What proposers of regions share: their protocol, removing duplicate masks, and masks at another size."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from powerclip.regions import rle
from powerclip.regions.annotation import RegionAnnotation

MAX_PROPOSALS = 64
"""At most this many masks of an image are stored, the best by score."""

MIN_AREA = 0.002
"""Share of the image below which a mask is dropped: less than half a patch of 14 x 14."""

MAX_IOU = 0.9
"""Two masks that overlap more than this (intersection over union) are duplicates; the better one stays."""


class Proposer(Protocol):
    """Anything that proposes regions."""

    name: str
    """Method and settings, or model: written to ``regions.json``."""
    batch_size: int
    """Images that are best proposed for at once."""

    def propose(self, images: Sequence[Image.Image]) -> list[RegionAnnotation]:
        """The regions of each RGB image, in its pixels, best first; ValueError if the method cannot process one."""


class AsBoxes:
    """What another proposer finds, as bounding boxes."""

    def __init__(self, proposer: Proposer) -> None:
        self.name, self.batch_size = f"{proposer.name}:boxes", proposer.batch_size
        self._proposer = proposer

    def propose(self, images: Sequence[Image.Image]) -> list[RegionAnnotation]:
        """As ``Proposer.propose``."""
        return [found.as_boxes(self.name) for found in self._proposer.propose(images)]


def deduplicate_masks(masks: NDArray[np.bool_], scores: Sequence[float]) -> list[int]:
    """Indices of (M, H, W) masks, best first, at most ``MAX_PROPOSALS``: not tiny, no duplicates, finite scores."""
    areas = masks.sum(axis=(1, 2), dtype=np.int64)
    kept: list[int] = []
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    for index in sorted(range(len(masks)), key=lambda i: (-scores[i], i)):
        if len(kept) == MAX_PROPOSALS:
            break
        if areas[index] < max(1, MIN_AREA * flat.shape[1]) or not np.isfinite(scores[index]):
            continue
        # Masks of very different size cannot overlap enough; only the others are compared pixel by pixel.
        near = [k for k in kept if min(areas[k], areas[index]) > MAX_IOU * max(areas[k], areas[index])]
        shared = [int(np.count_nonzero(flat[k] & flat[index])) for k in near]
        if all(s <= MAX_IOU * (areas[k] + areas[index] - s) for k, s in zip(near, shared, strict=True)):
            kept.append(index)
    return kept


def annotate(
    masks: NDArray[np.bool_], scores: Sequence[float], image: Image.Image, *, proposer: str
) -> RegionAnnotation:
    """The annotation of an image from (M, h, w) masks of a smaller copy, deduplicated, best first."""
    kept = deduplicate_masks(masks, scores)
    return scaled_annotation(masks[kept], [scores[i] for i in kept], image, proposer=proposer)


def scaled_annotation(
    masks: NDArray[np.bool_], scores: Sequence[float], image: Image.Image, *, proposer: str
) -> RegionAnnotation:
    """The annotation of an image from (M, h, w) masks of a smaller copy or a grid; one at a time is at full size."""
    rles = tuple(rle.encode(masks_at_size(masks[m : m + 1], image)[0]) for m in range(len(masks)))
    return RegionAnnotation(
        height=image.height, width=image.width, rles=rles, scores=tuple(scores), proposer=proposer
    )  # fmt: skip


def shrink_to(image: Image.Image, longest: int) -> Image.Image:
    """The image, reduced if its longer side has more than ``longest`` pixels."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def masks_at_size(masks: Any, image: Image.Image) -> NDArray[np.bool_]:
    """(M, h, w) masks of a smaller copy, scaled to the image by nearest neighbour: (M, H, W)."""
    result: NDArray[np.bool_] = np.asarray(masks, dtype=np.bool_)
    if result.shape[1:] == (image.height, image.width):
        return result
    for axis, size in ((1, image.height), (2, image.width)):
        old = result.shape[axis]
        result = np.repeat(result, np.bincount(np.arange(size) * old // size, minlength=old), axis=axis)
    return result
