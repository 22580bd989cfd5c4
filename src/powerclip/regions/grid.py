"""Masks in image coordinates become regions, or objects, on the patch grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import register_kernel, resize, resized_crop
from torchvision.tv_tensors import Mask


class PixelPlaces(Mask):  # type: ignore[misc]  # torchvision has no types
    """The row or the column of each pixel of an image, from 1 on, (1, H, W) int64; 0 is outside.

    torchvision's transforms move it with the image as they would move masks, which are then read at those pixels alone.
    It takes no memory as long as it is of the image's size: resizing looks at those pixels only that it keeps.
    """


def pixel_places(height: int, width: int) -> tuple[PixelPlaces, PixelPlaces]:
    """The rows and the columns of an image's pixels."""
    rows, columns = torch.arange(1, height + 1)[:, None], torch.arange(1, width + 1)
    return PixelPlaces(rows.expand(1, height, width)), PixelPlaces(columns.expand(1, height, width))


def _resized(places: PixelPlaces, size: list[int], **_options: Any) -> PixelPlaces:
    height, width = places.shape[1:]
    if len(size) == 1:  # of the shorter side
        size = [int(size[0] * side / min(height, width)) for side in (height, width)]
    rows, columns = (
        F.interpolate(torch.arange(length, dtype=torch.float64)[None, None], wanted, mode="nearest").long().flatten()
        for length, wanted in zip((height, width), size, strict=True)
    )
    return PixelPlaces(places.as_subclass(Tensor)[:, rows[:, None], columns])


def _resized_crop(
    places: PixelPlaces, top: int, left: int, height: int, width: int, size: list[int], **_options: Any
) -> PixelPlaces:
    return _resized(PixelPlaces(places[:, top : top + height, left : left + width]), size)


register_kernel(resize, PixelPlaces)(_resized)
register_kernel(resized_crop, PixelPlaces)(_resized_crop)


def masks_to_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(M, N) bool, row-major, of (M, H, W) bool: a patch belongs to a region if at least half of it is covered.

    A mask too small for that keeps its most covered patch; an empty mask stays empty. Pixels beyond the last complete
    patch belong to no patch, as in the tower's patch embedding. ValueError if the masks are not three-dimensional or
    not bool, or smaller than the grid.
    """
    covered, patch_pixels = _covered(masks, grid)
    best = F.one_hot(covered.argmax(dim=1), covered.shape[1]).bool()
    large = covered * 2 >= patch_pixels
    return torch.where(large.any(dim=1, keepdim=True), large, best & (covered > 0))


def objects_to_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(M, N) bool, row-major, of (M, H, W) bool: the patches that show an object, for measuring what is found of it.

    They are covered at least half as much as the object's most covered patch, so that a small or thin object has
    patches too; an object outside the patches has none. ValueError as ``masks_to_grid``.
    """
    covered, _ = _covered(masks, grid)
    return (covered * 2 >= covered.amax(dim=1, keepdim=True)) & (covered > 0)


def _covered(masks: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int]:
    """(M, N) pixels of each patch that masks (M, H, W) cover, and how many a patch has."""
    if masks.ndim != 3 or masks.shape[1] < grid[0] or masks.shape[2] < grid[1]:
        raise ValueError(
            f"masks must be (M, H, W), at least as large as the grid {grid}, but have shape {tuple(masks.shape)}"
        )
    if masks.dtype != torch.bool:
        raise ValueError(f"masks have dtype {masks.dtype}; expected bool: masks > 0, say")
    patch = masks.shape[1] // grid[0], masks.shape[2] // grid[1]
    masks = masks[:, : patch[0] * grid[0], : patch[1] * grid[1]]
    # Sums of zeros and ones: exact.
    covered = F.avg_pool2d(masks[:, None].float(), patch, divisor_override=1).flatten(1)
    return covered, patch[0] * patch[1]
