"""Images of evaluation data: where they are, and opening them when they are needed.

An image that cannot be read stops the evaluation. Openers are small values: equal ones open the same image, by which
the encoder knows an image that it has encoded.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from powerclip.config import Pixels
from powerclip.data.images import decode_for_benchmark, decode_image
from powerclip.data.sample import IMAGE_EXTENSIONS
from powerclip.data.shards import SamplePlace
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.regions.annotation import MAX_PIXELS
from powerclip.tasks import Picture

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class FileImage:
    """The image in a file, or the part of it inside (left, top, right, bottom) pixels."""

    path: Path
    crop: Box | None = None

    def __call__(self, pixels: Pixels = "pil") -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        image = _decoded(self.path.read_bytes, str(self.path), pixels)
        return image if self.crop is None else image.crop(self.crop)


@dataclass(frozen=True)
class ShardImage:
    """The image of one sample of a shard."""

    shard: Path
    key: str
    extension: str
    place: tuple[int, int]
    """Offset and size in bytes."""
    content: str = ""
    """A hash of the bytes, where they were read already."""
    pixels: Pixels | None = None
    """How its pixels are read, whatever is asked for."""

    @classmethod
    def of(cls, entry: SamplePlace, *, content: str = "", pixels: Pixels | None = None) -> ShardImage:
        """The image of a sample; raises PowerclipError if it has none."""
        extension = next((extension for extension in IMAGE_EXTENSIONS if extension in entry.members), None)
        if extension is None:
            raise PowerclipError(
                f"sample {entry.key} of {entry.shard} has no image under {', '.join(IMAGE_EXTENSIONS)}"
            )
        return cls(entry.shard, entry.key, extension, entry.members[extension], content, pixels)

    def __call__(self, pixels: Pixels = "pil") -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        entry = SamplePlace(shard=self.shard, key=self.key, members={self.extension: self.place})
        what = f"the image of sample {self.key} in {self.shard}"
        return _decoded(lambda: entry.files(only={self.extension})[self.extension], what, self.pixels or pixels)


def open_picture(picture: Picture, pixels: Pixels = "pil") -> Image.Image:
    """The image itself; ``pixels`` says how those of public data sets are read."""
    if isinstance(picture, FileImage | ShardImage):
        return picture(pixels)
    return picture if isinstance(picture, Image.Image) else picture()


def _decoded(read: Callable[[], bytes], what: str, pixels: Pixels) -> Image.Image:
    try:
        image = decode_for_benchmark(read()) if pixels == "pil" else decode_image(read())
    except (BadSampleError, OSError) as error:
        raise PowerclipError(f"{what} cannot be read ({error}); download it again") from error
    if image.width * image.height > MAX_PIXELS:
        warnings.warn(f"{what} has {image.width} x {image.height} pixels", stacklevel=2)
    return image


def key_of(picture: Picture) -> Hashable:
    """What equal images share as long as both are held: the opener itself, or the identity of an open image."""
    return picture if isinstance(picture, Hashable) else id(picture)


def identity(picture: Picture) -> str:
    """What tells an image wherever its data set is stored: its content if that is at hand, else name and size."""
    if isinstance(picture, Image.Image):
        return hashlib.sha256(picture.tobytes()).hexdigest()
    if isinstance(picture, FileImage):
        return f"{picture.path.name} {picture.crop}"
    if isinstance(picture, ShardImage):
        return picture.content or f"{picture.shard.name} {picture.key} {picture.place}"
    return ""
