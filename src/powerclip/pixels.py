"""Pixels as every part of powerclip sees them: training, evaluation, and the transform that comes with a model."""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from powerclip.errors import BadSampleError

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes long to import, and most of powerclip draws nothing

TO_EIGHT_BITS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(value >> 8 for value in colour),
}
"""What Pillow does to the pixels of a PNG, and not to its transparent colour, by its names of how they are stored."""


def to_rgb(opened: Image.Image) -> Image.Image:
    """An upright RGB copy without metadata, so that nobody turns it again.

    Transparency becomes white; the transparent colour of a PNG of 2 or 4 bits is known only before it is loaded or
    copied. The upper 8 of 16 bits are kept.

    Raises:
        BadSampleError: the numbers have no defined range, so that they could be shown as anything (floats, 32-bit
            integers).
    """
    tags = getattr(opened, "tag_v2", {})  # a TIFF's
    tiles = getattr(opened, "tile", ()) if opened.format == "PNG" else ()  # none once it is loaded
    stored = tiles[0][3] if tiles else ""
    opened.load()
    image = _upright(opened)
    # Mode I is 16 bits of a PNG or PGM, but whatever 32 bits of a TIFF hold, which a copy does not name.
    if image.mode == "F" or (image.mode == "I" and (opened.format == "TIFF" or not _has_16_bits(image))):
        raise BadSampleError(f"image without a range of values (mode {image.mode})")
    if image.mode.startswith("I"):
        image = _eight_bits(image, tags)
    if isinstance(colour := image.info.get("transparency"), tuple) and max(colour) > 255:
        stored = "RGB;16B"
    if stored in TO_EIGHT_BITS and "transparency" in image.info:
        image.info["transparency"] = TO_EIGHT_BITS[stored](image.info["transparency"])
    if image.mode in ("La", "RGBa"):  # which Pillow converts to nothing else
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.info = {}
    return image


def small_copy(image: Image.Image, side: int) -> Image.Image:
    """An RGB copy of an image, scaled down if a side is longer than ``side`` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """An image as a file of a form that Pillow knows, with its options."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(figure: "Figure", *, dpi: int = 130) -> bytes:
    """A figure as PNG bytes; characters that its font lacks become boxes, silently."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph \d+ .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its metadata say; unchanged if they are malformed."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises many kinds
        return image.copy()


def _has_16_bits(image: Image.Image) -> bool:
    values = np.asarray(image)
    return bool(((values >= 0) & (values < 2**16)).all())


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Grey of 16 bits, or 12 in a TIFF, as its upper 8, which is how Pillow reads colours of 16."""
    values = np.asarray(image)
    (bits,) = tags.get(BITSPERSAMPLE, (16,))
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # zero is white, which Pillow inverts for 8 bits only
        values = ~values
    grey = (values >> (bits - 8)).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
