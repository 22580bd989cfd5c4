"""Masks in image coordinates become regions on the patch grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masks_to_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reduce masks to patches: a patch belongs where at least half of it is covered.

    A mask too small for that keeps its most covered patch; an empty mask stays empty.

    Args:
        masks: (M, H, W) bool.
        grid: rows and columns of the patch grid.

    Returns:
        (M, N) bool, row-major.
    """
    if masks.shape[0] == 0:
        return torch.zeros((0, grid[0] * grid[1]), dtype=torch.bool)
    covered = F.interpolate(masks[:, None].double(), size=_multiple(masks, grid), mode="nearest")
    covered = F.adaptive_avg_pool2d(covered, grid).flatten(1)  # (M, N)
    best = F.one_hot(covered.argmax(dim=1), covered.shape[1]).bool()
    large = covered >= 0.5
    return torch.where(large.any(dim=1, keepdim=True), large, best & (covered > 0))


def _multiple(masks: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """The mask's size times the grid's, over their common divisor: every patch then covers whole pixels."""
    height, width = (
        torch.lcm(torch.tensor(size), torch.tensor(cells)).item()
        for size, cells in zip(masks.shape[1:], grid, strict=True)
    )
    return int(height), int(width)
