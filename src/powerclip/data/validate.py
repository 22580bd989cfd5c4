"""What makes annotations sound, whether they came with a source or are read back by the check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.sample import Sample
from powerclip.errors import BadSampleError
from powerclip.phrases.tokens import crossing
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import MAX_MASK_PIXELS, RegionAnnotation

MASKS_AT_ONCE = 8
"""Masks of an image that are decoded together."""


def check_annotations(sample: Sample, image: Image.Image | None = None) -> None:
    """See that the phrases lie in the caption, nested or disjoint, and the masks on the image.

    Args:
        sample: its annotations.
        image: the sample's, where it is decoded already.

    Raises:
        BadSampleError: they do not.
    """
    if sample.tree is not None:
        _check_tree(sample.tree, sample.caption)
    if sample.regions is not None:
        image = image or decode_image(sample.image)
        _check_regions(sample.regions, (image.height, image.width))


def _check_tree(tree: PhraseTree, caption: str) -> None:
    if tree.leaves and tree.leaves[-1][1] > len(caption):
        raise BadSampleError("phrases reach beyond the caption")
    if crossing(tree):
        raise BadSampleError("phrases cross")


def _check_regions(regions: Mapping[str, Any], size: tuple[int, int]) -> None:
    masks = regions.get("masks")
    if not isinstance(masks, list):
        raise BadSampleError("malformed regions.json")
    if (regions.get("height"), regions.get("width")) != size:
        raise BadSampleError("regions of another size than the image")
    if len(masks) * size[0] * size[1] > MAX_MASK_PIXELS:
        raise BadSampleError("more region masks than can be read")
    try:
        for first in range(0, max(1, len(masks)), MASKS_AT_ONCE):
            RegionAnnotation.from_json({**regions, "masks": masks[first : first + MASKS_AT_ONCE]})
    except ValueError as error:
        raise BadSampleError("malformed regions.json") from error
