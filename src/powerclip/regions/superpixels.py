"""Regions without weights: graph-based segmentation at three scales (Felzenszwalb and Huttenlocher, IJCV 2004)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.masks import MAX_REGIONS, MIN_AREA, masks_at_size, resized, tidied

SCALES = (100, 300, 1000)
"""Observation levels: the larger, the larger the segments."""

LONGEST_SIDE = 256
"""Pixels to which an image is reduced before it is segmented; masks are given in its own pixels all the same."""


class Superpixels:
    """Segments of an image at three scales; the score is the share of the image that a segment covers."""

    name = f"superpixels:felzenszwalb-{'-'.join(map(str, SCALES))}"

    def __init__(self) -> None:
        """Find scikit-image.

        Raises:
            PowerclipError: it is not installed.
        """
        try:
            from skimage.segmentation import felzenszwalb
        except ImportError as error:
            raise PowerclipError(
                "superpixels need scikit-image, which is not installed; pip install 'powerclip[superpixels]'"
            ) from error
        self._segment = felzenszwalb

    def propose(self, images: Iterable[Image.Image]) -> Iterator[RegionAnnotation]:
        """The segments of each image, the largest first."""
        return map(self._propose, images)

    def _propose(self, image: Image.Image) -> RegionAnnotation:
        pixels = np.asarray(resized(image, LONGEST_SIDE))
        smallest = max(1, round(MIN_AREA * pixels.shape[0] * pixels.shape[1]))
        found: list[tuple[int, int, int, NDArray[np.int64]]] = []  # area, order, number, segments of its scale
        for scale in SCALES:
            segments = self._segment(pixels, scale=scale, sigma=0.8, min_size=smallest, channel_axis=-1)
            found += [
                (int(area), -len(found), number, segments) for number, area in enumerate(np.bincount(segments.ravel()))
            ]
        # A segment can be the double of one other in each scale, so that the largest of these are enough.
        largest = sorted(found, key=lambda entry: entry[:2], reverse=True)[: len(SCALES) * MAX_REGIONS]
        stacked = np.stack([segments == number for _, _, number, segments in largest])
        scores = stacked.mean(axis=(1, 2)).tolist()
        small = tidied(stacked, scores, proposer=self.name)
        return RegionAnnotation(masks=masks_at_size(small.masks, image), scores=small.scores, proposer=small.proposer)
