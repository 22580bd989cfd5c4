"""The stored regions of a sample: M of them are drawn, and follow the image through its crop and flip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from powerclip.data.published import GRID as PUBLISHED_GRID
from powerclip.data.sample import Sample
from powerclip.data.validate import stored_masks
from powerclip.regions import masks_to_grid


def transform_with_regions(
    sample: Sample, image: Image.Image, transform: Callable[..., Any], *, count: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """An image as the tower takes it, and at most ``count`` of its stored regions on the patch grid.

    Which ones is drawn from torch's generator. A region that the crop leaves nothing of has no patch.

    Args:
        sample: with ``regions``, ``patch_regions`` or neither.
        image: its decoded image.
        transform: of torchvision's v2, so that it moves an image and masks together.
        count: M.
        grid: rows and columns of the patch grid.

    Returns:
        (3, H, W) image and (m, N) bool regions, m <= ``count``.

    Raises:
        BadSampleError: the stored regions are malformed, or of another size than the image.
    """
    if sample.regions is None:
        return transform(image), _patch_regions(sample, count)
    drawn = torch.randperm(len(sample.regions.rles))[:count].tolist()
    masks = torch.from_numpy(stored_masks(sample.regions, (image.height, image.width), drawn))
    if not len(masks):
        return transform(image), torch.zeros((0, grid[0] * grid[1]), dtype=torch.bool)
    moved, masks = transform(image, tv_tensors.Mask(masks.to(torch.uint8)))
    return moved, masks_to_grid(masks.bool(), grid)


def _patch_regions(sample: Sample, count: int) -> Tensor:
    regions = sample.patch_regions or ()
    chosen = torch.randperm(len(regions))[:count].tolist()
    masks = torch.zeros((len(chosen), PUBLISHED_GRID[0] * PUBLISHED_GRID[1]), dtype=torch.bool)
    for row, index in zip(masks, chosen, strict=True):
        row[list(regions[index])] = True
    return masks
