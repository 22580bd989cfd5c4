"""A contact sheet: samples as they lie in the shards, with their masks and phrases drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.published import GRID as PUBLISHED_GRID
from powerclip.data.sample import Sample
from powerclip.regions.masks import masks_at_size, shrink_to

COLUMNS = 4
LONGEST_SIDE = 320
CHARACTERS = 44
"""In a line under a picture."""
LINES = 5
OPACITY = 0.45


def contact_sheet(samples: Sequence[Sample]) -> Figure:
    """Pictures of some samples: masks in colours, the largest first, and the caption with its phrases in brackets."""
    rows = -(-len(samples) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 3.9 * rows), layout="constrained")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the font lacks
        panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, sample in zip(panels, samples, strict=False):
            image = shrink_to(decode_image(sample.image), LONGEST_SIDE)
            masks = _masks(sample, image)
            axes.imshow(_painted(image, masks))
            text = sample.tree.to_brackets(sample.caption) if sample.tree else sample.caption
            lines = fill(" ".join(text.split()), width=CHARACTERS).splitlines()
            shown = "\n".join(lines[:LINES]) + (" …" if len(lines) > LINES else "")
            axes.set_title(f"{sample.key[:40]}, {len(masks)} regions", fontsize=7, parse_math=False)
            axes.text(
                0, -0.02, shown, transform=axes.transAxes, fontsize=6.5, va="top", parse_math=False, family="monospace"
            )
        figure.canvas.draw_idle()
    return figure


def _masks(sample: Sample, image: Image.Image) -> NDArray[np.bool_]:
    """(M, H, W) of the small picture."""
    if sample.regions is not None:
        return masks_at_size(sample.regions.masks(), image)
    patches = np.zeros((len(sample.patch_regions or ()), PUBLISHED_GRID[0] * PUBLISHED_GRID[1]), dtype=np.bool_)
    for mask, region in zip(patches, sample.patch_regions or (), strict=True):
        mask[list(region)] = True
    return masks_at_size(patches.reshape(-1, *PUBLISHED_GRID), image)


def _painted(image: Image.Image, masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.float32)
    colours = matplotlib.colormaps["hsv"]
    order = sorted(range(len(masks)), key=lambda m: -int(masks[m].sum()))
    for position, m in enumerate(order):
        colour = np.array(colours(position * 0.618 % 1)[:3], dtype=np.float32) * 255
        edge = masks[m] & ~(_shifted(masks[m], 0) & _shifted(masks[m], 1))
        opacity = np.where(edge, 1.0, OPACITY if position else OPACITY / 2)[..., None]
        pixels = np.where(masks[m][..., None], (1 - opacity) * pixels + opacity * colour, pixels)
    return pixels.astype(np.uint8)


def _shifted(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Where both neighbours along an axis are inside too."""
    inside: NDArray[np.bool_] = np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return inside
