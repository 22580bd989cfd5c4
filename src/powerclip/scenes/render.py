"""Scenes become pixels and masks."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from powerclip.scenes.world import Object, Scene

SUPERSAMPLING = 8
RGB = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 88, 214),
    "yellow": (245, 214, 20),
    "purple": (128, 44, 160),
    "orange": (250, 128, 14),
    "black": (25, 25, 25),
    "pink": (250, 130, 190),
}
A, B = 0.33, 0.67
OUTLINES: dict[str, Sequence[tuple[float, float]]] = {
    "cube": ((0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)),
    "cone": ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0)),
    "diamond": ((0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)),
    "star": [
        (0.5 + radius * math.cos(math.pi * angle), 0.53 + radius * math.sin(math.pi * angle))
        for radius, angle in zip([0.53, 0.22] * 5, (np.arange(10) / 5 - 0.5).tolist(), strict=True)
    ],
    "cross": ((A, 0), (B, 0), (B, A), (1, A), (1, B), (B, B), (B, 1), (A, 1), (A, B), (0, B), (0, A), (A, A)),
    "heart": ((0.05, 0.44), (0.95, 0.44), (0.5, 1.0)),
}
"""Corners (x, y) of the shapes' polygons, as shares of their box; a heart also has two round lobes."""
Floats = NDArray[np.float32]


def render(scene: Scene, *, image_size: int, random: np.random.Generator) -> Image.Image:
    """Draw a scene on a light background of random shade and gradient."""
    low, high = random.uniform(215, 250, (2, 3))
    ramp = np.linspace(0, 1, image_size, dtype=np.float32)[:, None]
    canvas = np.repeat((low + (high - low) * ramp)[:, None, :], image_size, axis=1).astype(np.float32)
    for thing in scene:
        mask, top, left = _placed(thing, image_size)
        side = mask.shape[0]
        view = canvas[top : top + side, left : left + side]
        pattern = _pattern(thing.texture, side)[..., None]
        colour = np.asarray(RGB[thing.colour], dtype=np.float32)
        view += (colour + (255 - colour) * 0.62 * pattern - view) * mask[..., None]
    return Image.fromarray(canvas.round().astype(np.uint8))


def object_mask(thing: Object, *, image_size: int) -> NDArray[np.bool_]:
    """The (H, W) bool mask of an object."""
    mask, top, left = _placed(thing, image_size)
    full = np.zeros((image_size, image_size), dtype=bool)
    full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask > 0.5
    return full


def object_box(thing: Object, *, image_size: int) -> tuple[int, int, int, int]:
    """The box an object is drawn in: left, top, right, bottom in pixels, the last two exclusive."""
    mask, top, left = _placed(thing, image_size)
    return left, top, left + mask.shape[1], top + mask.shape[0]


def _placed(thing: Object, image_size: int) -> tuple[Floats, int, int]:
    """An object's coverage, and the pixel its box begins at."""
    side = max(4, round(2 * thing.radius * image_size))
    top, left = (round(centre * image_size - side / 2) for centre in (thing.y, thing.x))
    return _coverage(thing.shape, side), max(0, top), max(0, left)


@lru_cache(maxsize=1024)
def _coverage(shape: str, side: int) -> Floats:
    """How much of each pixel of its (side, side) box a shape covers."""
    large = side * SUPERSAMPLING
    image = Image.new("L", (large, large))
    draw = ImageDraw.Draw(image)
    if shape in OUTLINES:
        draw.polygon([(large * x, large * y) for x, y in OUTLINES[shape]], fill=255)
    else:
        draw.ellipse((0, 0, large - 1, large - 1), fill=255)
    if shape == "ring":
        draw.ellipse(tuple(large * v for v in (0.28, 0.28, 0.72, 0.72)), fill=0)
    if shape == "heart":
        draw.ellipse(tuple(large * v for v in (0.0, 0.05, 0.54, 0.58)), fill=255)
        draw.ellipse(tuple(large * v for v in (0.46, 0.05, 1.0, 0.58)), fill=255)
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


@lru_cache(maxsize=1024)
def _pattern(texture: str, side: int) -> Floats:
    """Where a texture lightens its object: (side, side) of 0 and 1."""
    if texture == "plain":
        return np.zeros((side, side), dtype=np.float32)
    row, column = np.mgrid[:side, :side]
    cell = max(2, side // 7)
    if texture == "striped":
        light = (row + column) // (cell + 1) % 2 == 1
    else:
        light = ((row + 1) % (2 * cell) < cell) & ((column + 1) % (2 * cell) < cell)
    pattern: Floats = light.astype(np.float32)
    return pattern
