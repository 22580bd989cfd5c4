"""Whether annotations fit their caption and image: those of a source, of a shard being checked, of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from powerclip.data.sample import Sample
from powerclip.errors import BadSampleError
from powerclip.regions.annotation import RegionAnnotation


def check_annotations(sample: Sample, size: tuple[int, int]) -> None:
    """Check phrases and masks against the caption and ``size`` (H, W); BadSampleError if they do not fit."""
    check_phrases(sample)
    if sample.regions is not None:
        check_regions(sample.regions, size)


def check_regions(regions: RegionAnnotation, size: tuple[int, int], indices: Sequence[int] | None = None) -> None:
    """Check the masks, or those at some indices, against ``size``, the image's (H, W), without decoding them.

    BadSampleError if they do not fit.
    """
    check_size(regions, size)
    try:
        regions.validate(indices)
    except ValueError as error:
        raise BadSampleError("malformed regions.json") from error


def check_phrases(sample: Sample) -> None:
    """Check that phrases lie in their captions and are nested or disjoint,
    so fewer than 2 L of L leaves; BadSampleError."""
    for caption in sample.captions:
        tree = caption.tree
        if tree is not None and tree.leaves and tree.leaves[-1][1] > len(caption.text):
            raise BadSampleError("phrases reach beyond the caption")
        if tree is not None and tree.crossing:
            raise BadSampleError("phrases cross")


def stored_masks(regions: RegionAnnotation, indices: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Stored masks by index, at pixels (1, h, w) of ``PixelPlaces``: (M, h, w) bool; BadSampleError if malformed."""
    try:
        return torch.from_numpy(regions.at(indices, rows[0].numpy(), columns[0].numpy()))
    except ValueError as error:
        raise BadSampleError("malformed regions.json") from error


def check_size(regions: RegionAnnotation, size: tuple[int, int]) -> None:
    """BadSampleError if regions are not of ``size``, the image's (H, W)."""
    if (regions.height, regions.width) != size:
        raise BadSampleError("regions and image differ in size")
