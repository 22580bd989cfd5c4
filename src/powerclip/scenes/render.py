"""Scenes become pixels and masks."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from powerclip.scenes.world import SYMBOLS, Object, Scene

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
        view += (np.asarray(RGB[thing.colour], dtype=np.float32) - view) * mask[..., None]
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
    """How much of each pixel of its (side, side) box a symbol covers, as large as fits."""
    large = side * SUPERSAMPLING
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", large)
    image = Image.new("L", (2 * large, 2 * large))
    ImageDraw.Draw(image).text((large // 2, large // 4), SYMBOLS[shape], fill=255, font=font)
    small = ImageOps.pad(image.crop(image.getbbox()), (large, large)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)
