"""Whether annotations fit their caption and image: those of a source, of a shard being checked, of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from powerclip.data.sample import Sample
from powerclip.errors import BadSampleError
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import RegionAnnotation


def check_annotations(sample: Sample, size: tuple[int, int]) -> None:
    """Check that the phrases lie within the caption, nested or disjoint, and that the masks fit the image.

    Args:
        sample: its annotations are checked.
        size: height and width of its decoded image.

    Raises:
        BadSampleError: they do not fit.
    """
    if sample.tree is not None:
        _check_tree(sample.tree, sample.caption)
    if sample.regions is not None:
        _check_size(sample.regions, size)
        try:
            sample.regions.validate()
        except ValueError as error:
            raise BadSampleError("malformed regions.json") from error


def stored_masks(regions: RegionAnnotation, size: tuple[int, int], indices: Sequence[int]) -> NDArray[np.bool_]:
    """Decode some of the stored masks of an image.

    Args:
        regions: of the image.
        size: height and width of the decoded image.
        indices: which masks.

    Returns:
        (M, H, W) bool.

    Raises:
        BadSampleError: the masks are of another size than the image, or malformed.
    """
    _check_size(regions, size)
    try:
        return regions.masks(indices)
    except ValueError as error:
        raise BadSampleError("malformed regions.json") from error


def _check_size(regions: RegionAnnotation, size: tuple[int, int]) -> None:
    if (regions.height, regions.width) != size:
        raise BadSampleError("regions and image differ in size")


def _check_tree(tree: PhraseTree, caption: str) -> None:
    if tree.leaves and tree.leaves[-1][1] > len(caption):
        raise BadSampleError("phrases reach beyond the caption")
    if tree.crossing:
        raise BadSampleError("phrases cross")
