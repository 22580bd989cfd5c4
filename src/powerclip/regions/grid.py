"""Masks in image coordinates become regions, or objects, on the patch grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
