"""Boxes on the patch grid: random ones to train with (PowerCLIP-R), fixed ones to evaluate, tiles to draw."""

import math

import torch
from torch import Tensor


def random_boxes(images: int, *, regions: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, M, N) bool boxes on the CPU: centre, width and height uniform over the grid (Kawamura et al., CVPR 2026).

    A box is clipped at the border and always holds the patch of its centre. B is ``images``, M ``regions`` and N
    rows x columns, row-major. The boxes are a function of the state of the generator, one on the CPU.
    """
    shape = (images, regions)
    row, column = (_random_interval(shape, size, generator) for size in grid)  # (B, M, rows), (B, M, columns)
    boxes: Tensor = row[..., :, None] & column[..., None, :]
    return boxes.flatten(2)


def _random_interval(shape: tuple[int, int], size: int, generator: torch.Generator) -> Tensor:
    """(B, M, size) bool: the cells of a random interval, those whose centre it covers and the one it is centred in."""
    centre, length = torch.rand((2, *shape, 1), generator=generator) * size
    cell = torch.arange(size)
    inside: Tensor = ((cell + 0.5 - centre).abs() <= length / 2) | (cell == centre.long())
    return inside


def fixed_boxes(grid: tuple[int, int], *, sizes: tuple[float, ...] = (0.5, 0.25)) -> Tensor:
    """(M, N) bool, row-major: half-overlapping boxes, sides ``sizes`` of the grid's; for evaluation."""
    boxes = []
    for share in sizes:
        height, width = (max(1, round(share * size)) for size in grid)
        for top in window_starts(grid[0], height):
            for left in window_starts(grid[1], width):
                box = torch.zeros(grid, dtype=torch.bool)
                box[top : top + height, left : left + width] = True
                boxes.append(box.flatten())
    return torch.stack(boxes)


def tiles(grid: tuple[int, int], *, at_most: int = 64) -> Tensor:
    """(M, N) bool, row-major: square tiles that together cover the grid once,
    the smallest of which there are few enough.

    Single patches if the grid has no more than ``at_most``; those at the lower and right border may be smaller.
    """
    side = next(s for s in range(1, max(grid) + 1) if math.ceil(grid[0] / s) * math.ceil(grid[1] / s) <= at_most)
    row, column = (torch.arange(size) // side for size in grid)
    tile = (row[:, None] * math.ceil(grid[1] / side) + column).flatten()  # (N,) the tile of each patch
    return tile == torch.arange(int(tile[-1]) + 1)[:, None]


def window_starts(size: int, length: int) -> list[int]:
    """Where windows begin that cover a side, by steps of half a window; the last one ends with the side."""
    return sorted({*range(0, size - length + 1, max(1, length // 2)), size - length})
