"""Bytes become upright RGB pixels or a bad sample, whatever they hold."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from powerclip.data import images
from powerclip.data.images import FORMATS, MAX_SCANNED_PIXELS, decode_for_benchmark, decode_image
from powerclip.errors import BadSampleError
from powerclip.prepare.pairs import make_pair
from tests.support.images import encoded, one_colour

ORIENTATION = 0x112
TURNED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p),
}
"""How an image that is stored so is seen (EXIF 2.32, 4.6.4)."""


def noise(height=9, width=14):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def turn(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def grey_png(values, *, transparent=None):
    """A row of 16 bits."""
    key = b"" if transparent is None else struct.pack(">H", transparent)
    return png_row(np.array(values, ">u2").tobytes(), key, width=len(values), bits=16, colours=0)


def png_row(row, key, *, width, bits, colours):
    """A row of a PNG in which one colour may be transparent; ``colours`` is 0 for grey, 2 for RGB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0))
    transparent = chunk(b"tRNS", key) if key else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + pixels + chunk(b"IEND", b"")


def with_tag(tiff, tag, old, new):
    """A TIFF of little-endian order with another value in one of its short tags."""
    entry = struct.Struct("<HHII")
    assert tiff.count(entry.pack(tag, 3, 1, old)) == 1
    return tiff.replace(entry.pack(tag, 3, 1, old), entry.pack(tag, 3, 1, new))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_picture_is_turned_upright_once(kind, options, orientation):
    stored = np.asarray(decode_image(encoded(noise(), kind, **options)))
    upright = decode_image(encoded(noise(), kind, exif=turn(orientation), **options))
    np.testing.assert_array_equal(np.asarray(upright), TURNED[orientation](stored))
    assert upright.info == {}
    assert ORIENTATION not in upright.getexif()


HEIC = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
"""pillow-heif's settings for pixels that come back as they were."""


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_read_as_the_file_itself_turns_it(orientation):
    """Its own properties say how it is turned, which the decoder follows;
    EXIF's tag repeats them (ISO/IEC 23008-12)."""
    read = decode_image(encoded(noise(16, 24), "HEIF", exif=turn(orientation), **HEIC))
    np.testing.assert_array_equal(np.asarray(read), np.asarray(noise(16, 24)))
    assert read.format == "HEIF"
    assert ORIENTATION not in read.getexif()


def test_what_is_transparent_in_a_heic_is_white():
    see_through = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (np.asarray(decode_image(encoded(see_through, "HEIF", **HEIC))) == 255).all()


def test_heic_without_its_library_says_what_to_install(monkeypatch):
    data = encoded(noise(16, 24), "HEIF")
    monkeypatch.setattr(images, "FORMATS", tuple(kind for kind in FORMATS if kind != "HEIF"))
    with pytest.raises(BadSampleError, match=r"HEIC image, which needs pillow-heif .pip install 'powerclip.heic.'.$"):
        decode_image(data)


def test_grey_of_16_bits_and_a_palette_are_turned_too():
    for mode in ("I;16", "P", "LA"):
        image = noise().convert("L").convert(mode)
        stored = np.asarray(decode_image(encoded(image, "PNG")))
        np.testing.assert_array_equal(
            np.asarray(decode_image(encoded(image, "PNG", exif=turn(6)))), np.rot90(stored, -1)
        )


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_malformed_metadata_cost_no_picture(exif):
    data = encoded(noise(), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(noise()))


ROW, SEEN = [0, 255, 256, 32768, 65535], [0, 0, 1, 128, 255]


def seen(data):
    pixels = np.asarray(decode_image(data))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def test_grey_of_16_bits_keeps_its_range():
    tiff = encoded(Image.fromarray(np.array([ROW], "<u2")), "TIFF")
    assert seen(grey_png(ROW)) == SEEN
    assert seen(grey_png(ROW, transparent=256)) == [0, 0, 255, 128, 255]
    assert seen(b"P5\n5 1\n65535\n" + np.array(ROW, ">u2").tobytes()) == SEEN
    assert seen(b"P5\n3 1\n1000\n" + np.array([0, 500, 1000], ">u2").tobytes()) == [0, 128, 255]
    assert seen(tiff) == SEEN
    assert seen(encoded(Image.fromarray(np.array([ROW], ">u2")), "TIFF")) == SEEN
    assert seen(with_tag(tiff, 262, 1, 0)) == [255 - value for value in SEEN]


def test_grey_of_12_bits_keeps_its_range():
    data = encoded(Image.fromarray(np.frombuffer(b"\x80\x0f\xff\0", "<u2")[None]), "TIFF")  # 0x800 and 0xfff
    assert seen(with_tag(data, 258, 16, 12)) == [128, 255]


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"),
        encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"),
        b"Pf\n1 1\n-1.0\n" + np.float32(1).tobytes(),
    ],
)
def test_numbers_without_a_range_are_no_picture(data):
    with pytest.raises(BadSampleError, match=r"^image without a range of values \(mode [FI]\)$"):
        decode_image(data)


def test_several_pictures_in_a_jpeg_stay_one_jpeg():
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise().rotate(180)])
    image = decode_image(data)
    assert image.format == "MPO"
    sample, _ = make_pair("a", data, "a dog")
    assert (sample.image, sample.image_extension) == (data, "jpg")
    first = decode_image(encoded(noise(), "JPEG"))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(first))


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_what_shards_hold_stays_byte_for_byte(kind, extension):
    data = encoded(noise(), kind, exif=turn(6))
    sample, _ = make_pair("a", data, "a dog")
    assert (sample.image, sample.image_extension) == (data, extension)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_other_formats_become_the_same_picture_as_png(kind):
    data = encoded(noise(), kind)
    sample, decoded = make_pair("a", data, "a dog")
    assert sample.image_extension == "png"
    assert decode_image(sample.image).format == "PNG"
    np.testing.assert_array_equal(np.asarray(decode_image(sample.image)), np.asarray(decoded))


KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
MODES = ("RGB", "L", "P", "1", "RGBA", "I;16", "CMYK", "LAB")


@st.composite
def damaged(draw):
    """A small image of any kind, some of its bytes changed, truncated or not."""
    kind, mode = draw(st.sampled_from(KINDS)), draw(st.sampled_from(MODES))
    image = Image.new("LAB", (14, 9)) if mode == "LAB" else noise().convert("L" if mode == "I;16" else "RGB")
    try:
        raw = bytearray(encoded(image.convert(mode), kind, **draw(st.sampled_from([{}, {"exif": turn(6)}]))))
    except (OSError, ValueError):  # a format does not hold every mode
        raw = bytearray(encoded(noise(), kind))
    for _ in range(draw(st.integers(0, 6))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw)


@given(damaged())
def test_no_bytes_break_the_decoder(data):
    try:
        image = decode_image(data)
    except BadSampleError:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0
    assert image.info == {}
    image.getpixel((image.width - 1, image.height - 1))


def with_scans(size, *, more):
    """A progressive JPEG whose last scan comes several times."""
    data = encoded(Image.new("RGB", size, "teal"), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + more * last + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    """Each passes over all pixels: 28 ms of CPU time for 62 megapixels, where a plain file takes 0.2 s."""
    pixels = MAX_SCANNED_PIXELS // 1000
    side = int(pixels**0.5)
    assert decode_image(with_scans((side, side), more=980)).size == (side, side)
    for data in (with_scans((side, side), more=1010), with_scans((8000, 8000), more=10)):
        with pytest.raises(BadSampleError, match=r"^image with too many scans$"):
            decode_image(data)


def test_scans_are_counted_in_the_image_alone():
    """Not in a thumbnail before it, nor in what follows it, as a film after a picture of a phone."""
    data = with_scans((4000, 4000), more=0)
    thumbnail = b"\xff\xe1" + (2 + 3000).to_bytes(2) + b"\xff\xda" * 1500
    image = decode_image(data[:2] + thumbnail * 10 + data[2:] + b"\xff\xda" * 100_000)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(decode_image(data)))


def test_transparency_is_laid_over_white():
    assert decode_image(one_colour((255, 0, 0, 0), mode="RGBA")).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(one_colour((255, 0, 0, 255), mode="RGBA")).getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(one_colour(7, mode="L")).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("bits", "colours", "row", "key", "seen"),
    [
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),
        (4, 0, b"\x36", b"\0\3", [255, 102]),
        (8, 0, b"\x36\x37", b"\0\x36", [255, 0x37]),
        (8, 2, b"\x36" * 3 + b"\x37" * 3, b"\0\x36" * 3, [255, 0x37]),
        (16, 2, b"\x12\x34" * 3 + b"\x34\0" * 3, b"\x12\x34" * 3, [255, 0x34]),
    ],
)
def test_the_transparent_colour_of_a_png_is_one_of_its_own_depth(bits, colours, row, key, seen):
    image = decode_image(png_row(row, key, width=2, bits=bits, colours=colours))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(value,) * 3 for value in seen]


def test_a_decompression_bomb_is_refused_before_it_is_decompressed():
    bomb = one_colour(0, size=(30_000, 30_000), mode="1")
    with pytest.raises(BadSampleError, match="image too large"):
        decode_image(bomb)


def test_only_decoders_within_pillow_are_tried(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("Ghostscript was called"))
    with pytest.raises(BadSampleError, match="image format not read"):
        decode_image(one_colour(kind="EPS"))
    for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert decode_image(one_colour(kind=image_format)).size == (8, 8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "Git LFS pointer"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>404</title>", "web page in place of an image"),
        (b"<!-- old --> <HTML>", "web page in place of an image"),
        (one_colour(kind="TGA"), "image format not read"),
        (one_colour(kind="ICO"), "image format not read"),
        (b'<?xml version="1.0"?><svg/>', "image format not read"),
        (b"%PDF-1.7", "image format not read"),
        (b"\xff\x0a\xfa", "image format not read"),  # JPEG XL
        (b"P", "image format not read"),
        (one_colour(kind="JPEG")[:40], "corrupt image"),
        (one_colour(kind="PNG")[:12], "corrupt image"),
        (b"GIF89a", "corrupt image"),
    ],
)
def test_why_bytes_are_not_an_image(data, reason):
    for decode in (decode_image, decode_for_benchmark):
        with pytest.raises(BadSampleError, match=f"^{reason}"):
            decode(data)
