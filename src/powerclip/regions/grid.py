"""Masks in image coordinates become regions on the patch grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masks_to_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reduce masks to patches: a patch belongs where at least half of it is covered.

    A mask too small for that keeps its most covered patch; an empty mask stays empty. Areas are exact, also where the
    size of the image is no multiple of the grid's.

    Args:
        masks: (M, H, W) bool.
        grid: rows and columns of the patch grid.

    Returns:
        (M, N) bool, row-major.

    Raises:
        ValueError: the masks are not three-dimensional or hold no pixel.
    """
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"masks must be (M, H, W) with H, W > 0, but have shape {tuple(masks.shape)}")
    height, width = masks.shape[1:]
    rows = _overlaps(height, grid[0]).to(masks.device)
    columns = _overlaps(width, grid[1]).to(masks.device)
    covered = (rows @ masks.double() @ columns.T).flatten(1)  # (M, N), out of height * width; whole numbers
    if masks.shape[0] == 0:
        return covered.bool()
    best = F.one_hot(covered.argmax(dim=1), covered.shape[1]).bool()
    large = covered * 2 >= height * width
    return torch.where(large.any(dim=1, keepdim=True), large, best & (covered > 0))


def _overlaps(pixels: int, cells: int) -> Tensor:
    """(cells, pixels) lengths that each cell and pixel share, in units of which a pixel has `cells`."""
    pixel, cell = torch.arange(pixels) * cells, torch.arange(cells)[:, None] * pixels
    shared = torch.minimum(pixel + cells, cell + pixels) - torch.maximum(pixel, cell)
    return shared.clamp_min(0).double()
