"""Image bytes become pixels, safely."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from powerclip.data.sample import BadSampleError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats whose decoders are tried: all lie within Pillow; EPS, for one, would start Ghostscript."""

MAX_PIXELS = 64_000_000
"""A larger image is refused before it is decompressed."""


def decode_image(data: bytes) -> Image.Image:
    """An RGB image from bytes; transparency is laid over white.

    Raises:
        BadSampleError: the bytes are no whole image, or one of more than ``MAX_PIXELS``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images, and of oddities in metadata
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadSampleError("image too large")
            image.load()
    except BadSampleError:
        raise
    except Image.DecompressionBombError as error:
        raise BadSampleError("image too large") from error
    except Exception as error:  # Pillow's decoders raise many kinds on hostile bytes
        raise BadSampleError("corrupt image") from error
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
