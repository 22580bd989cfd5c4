"""Image bytes to pixels, safely."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from powerclip.errors import BadSampleError
from powerclip.regions.annotation import MAX_PIXELS

Image.init()
FORMATS = tuple(
    kind for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF") if kind in Image.OPEN
)
"""Formats whose decoders are tried: those within Pillow; the one for EPS, for example, would start Ghostscript."""

IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS))
"""Extensions of the files that are taken for images, wherever they come from: ".avif", ".bmp", ..."""


def decode_image(data: bytes) -> Image.Image:
    """An upright RGB image from bytes; the first if they hold several.

    The orientation in its metadata is applied and the metadata dropped, so that nobody applies it again: height and
    width are those of the upright image, everywhere. Transparency becomes white. The upper 8 of 16 bits are kept. The
    image's ``format`` is that of the bytes: one of ``FORMATS``, or "MPO" for several JPEGs in a file.

    Raises:
        BadSampleError: the bytes are not a complete image, it has more than ``MAX_PIXELS``, or its numbers have no
            defined range, so that it could be shown as anything (floats, 32-bit integers).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images and odd metadata
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadSampleError("image too large")
            image.load()
            rgb = _rgb(image)
            rgb.format = image.format
            return rgb
    except BadSampleError:
        raise
    except Image.DecompressionBombError as error:
        raise BadSampleError("image too large") from error
    except Exception as error:  # Pillow's decoders raise many kinds on hostile bytes
        raise BadSampleError("corrupt image") from error


def _rgb(opened: Image.Image) -> Image.Image:
    tags = getattr(opened, "tag_v2", {})  # a TIFF's
    image = _upright(opened)
    # Mode I is 16 bits of a PNG or PGM, but whatever 32 bits of a TIFF hold.
    if image.mode == "F" or (image.mode == "I" and opened.format == "TIFF"):
        raise BadSampleError(f"image without a range of values (mode {image.mode})")
    if image.mode.startswith("I"):
        image = _eight_bits(image, tags)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.info = {}
    return image


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its metadata say; unchanged if they are malformed."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # many kinds, as above
        return image.copy()


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
