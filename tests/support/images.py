"""Encoded images."""

import io

from PIL import Image


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def one_colour(colour="red", kind="PNG", *, size=(8, 8), mode="RGB"):
    """The bytes of an image file of one colour."""
    return encoded(Image.new(mode, size, colour), kind)
