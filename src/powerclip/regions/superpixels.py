"""Regions without weights: graph-based segmentation at three scales (Felzenszwalb and Huttenlocher, IJCV 2004)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from powerclip.errors import needs_extra
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.masks import MAX_PROPOSALS, MIN_AREA, annotate, shrink_to

SCALES = (100, 300, 1000)
"""Felzenszwalb's scale parameter: larger values give larger segments."""

LONGEST_SIDE = 256
"""An image is segmented in a copy with at most this many pixels on its longer side; masks are scaled back."""


class Superpixels:
    """Segments of an image at three scales; the score is the share of the image that a segment covers."""

    name = f"superpixels:felzenszwalb-{'-'.join(map(str, SCALES))}"
    batch_size = 1

    def __init__(self) -> None:
        with needs_extra("--regions superpixels", "superpixels"):
            from skimage.segmentation import felzenszwalb
        self._segment = felzenszwalb

    def propose(self, images: Sequence[Image.Image]) -> list[RegionAnnotation]:
        """The segments of each image, the largest first."""
        return [self._segments(image) for image in images]

    def _segments(self, image: Image.Image) -> RegionAnnotation:
        pixels = np.asarray(shrink_to(image, LONGEST_SIDE))
        smallest = max(1, round(MIN_AREA * pixels.shape[0] * pixels.shape[1]))
        candidates: list[tuple[int, int, int, NDArray[np.int64]]] = []  # area, order, number, segments of its scale
        for scale in SCALES:
            segments = self._segment(pixels, scale=scale, sigma=0.8, min_size=smallest, channel_axis=-1)
            areas = enumerate(np.bincount(segments.ravel()))
            candidates += [(int(area), -len(candidates), number, segments) for number, area in areas]
        # A segment can have at most one duplicate in each scale, so the largest of these are enough.
        largest = sorted(candidates, key=lambda entry: entry[:2], reverse=True)[: len(SCALES) * MAX_PROPOSALS]
        stacked = np.stack([segments == number for _, _, number, segments in largest])
        scores = stacked.mean(axis=(1, 2)).tolist()
        return annotate(stacked, scores, image, proposer=self.name)
