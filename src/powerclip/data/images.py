"""Image bytes to pixels, safely."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image

from powerclip.errors import BadSampleError
from powerclip.pixels import to_rgb
from powerclip.regions.annotation import MAX_PIXELS

Image.init()
with suppress(ImportError):
    from pillow_heif import register_heif_opener  # an extra

    register_heif_opener()

FORMATS = tuple(
    kind
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
    if kind in Image.OPEN
)
"""Formats whose decoders are tried: Pillow's own, of which the one for EPS, for example, would start Ghostscript, and
pillow-heif's if it is installed."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""How the bytes 8 to 12 of HEIC files name their kind."""
HEIC_SUFFIXES = (".heic", ".heif")
"""Taken for images even without pillow-heif, so that a pair is not lost without a reason."""

JPEG_SUFFIXES = (".jfi", ".jif", ".mpo", ".pjp", ".pjpeg")
"""Further ones of JPEG files, which Pillow does not list for that format."""

IMAGE_SUFFIXES = tuple(
    sorted(
        {
            *HEIC_SUFFIXES,
            *JPEG_SUFFIXES,
            *(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS),
        }
    )
)
"""Extensions of the files that are taken for images, wherever they come from: ".avif", ".bmp", ..."""

MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
"""Pixels of a JPEG, once for each of its scans; programs write ten, but a file may have thousands."""

JPEG_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""The start of a JPEG's segment, after which its length follows;
within a scan, 255 is followed by 0 or by a restart."""

START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xd9"

LFS_POINTER = b"version https://git-lfs"
WEB_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype html|html)", re.IGNORECASE | re.DOTALL)


def decode_for_benchmark(data: bytes) -> Image.Image:
    """What PIL's ``convert("RGB")`` makes of an image's bytes, by which published numbers were measured.

    Other than for training, it is not turned upright, what is transparent keeps its colour, and 16 bits of grey are
    clipped. No limit of pixels but Pillow's own. BadSampleError if the bytes are not a complete image.
    """
    with _pillow_errors(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB")
    image.info = {}  # nobody turns it later
    return image


def decode_image(data: bytes) -> Image.Image:
    """An upright RGB image from bytes; the first if they hold several.

    The orientation in its metadata is applied and the metadata dropped, so that nobody applies it again: height and
    width are those of the upright image, everywhere. Transparency becomes white. The upper 8 of 16 bits are kept. The
    image's ``format`` is that of the bytes: one of ``FORMATS``, or "MPO" for several JPEGs in a file. BadSampleError if
    the bytes are not a complete image, it has more than ``MAX_PIXELS``, or its numbers (floats, 32-bit integers) have
    no defined range, so that it could be shown as anything.
    """
    if "HEIF" not in FORMATS and data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise BadSampleError("HEIC image, which needs pillow-heif (pip install 'powerclip[heic]')")
    with _pillow_errors(data):
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadSampleError("image too large")
        if image.format in ("JPEG", "MPO") and _scans(data) * image.width * image.height > MAX_SCANNED_PIXELS:
            raise BadSampleError("image with too many scans")
        rgb = to_rgb(image)
    rgb.format = image.format
    return rgb


def _scans(data: bytes) -> int:
    """Scans of the first image in a JPEG file, each of which passes over all of its pixels."""
    position, scans = 0, 0
    while (match := JPEG_SEGMENT.search(data, position)) and match[1] != END_OF_IMAGE:
        scans += match[1] == START_OF_SCAN
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2])
    return scans


@contextmanager
def _pillow_errors(data: bytes) -> Iterator[None]:
    """Whatever Pillow raises as a BadSampleError; its warnings of large images and odd metadata are ignored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadSampleError:
        raise
    except Image.DecompressionBombError as error:
        raise BadSampleError("image too large") from error
    except Exception as error:  # Pillow's decoders raise many kinds on hostile bytes
        raise BadSampleError(_reason(data)) from error


def _reason(data: bytes) -> str:
    """Why bytes cannot be decoded."""
    if not data:
        return "empty file"
    if data.startswith(LFS_POINTER):
        return "Git LFS pointer in place of the file (git lfs pull)"
    if WEB_PAGE.match(data[:1000].removeprefix(b"\xef\xbb\xbf")):
        return "web page in place of an image"
    start = data[:16].ljust(16, b"\0")  # what Pillow tells formats apart by
    known = any(accept is None or accept(start) for _, accept in map(Image.OPEN.__getitem__, FORMATS))
    return "corrupt image" if known else "image format not read"
