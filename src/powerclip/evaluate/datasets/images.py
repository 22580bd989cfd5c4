"""Images of evaluation data: where they are, and opening them when they are needed.

An image that cannot be read stops the evaluation. Openers are small values: equal ones open the same image, by which
the encoder knows an image that it has encoded.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from powerclip.config.values import Pixels
from powerclip.data.images import IMAGE_SUFFIXES, decode_for_benchmark, decode_image
from powerclip.data.parquet import open_parquet, read_group
from powerclip.data.sample import IMAGE_EXTENSIONS
from powerclip.data.shards import SamplePlace
from powerclip.distributed import rank
from powerclip.errors import BadSampleError, PowerclipError, counted
from powerclip.pixels import encoded
from powerclip.regions.annotation import MAX_PIXELS
from powerclip.tasks import Content, Picture, Region, Shown

Box = tuple[int, int, int, int]

START_BYTES = 2**16
"""How much of a file is looked at to tell it from others."""


@dataclass(frozen=True)
class FileImage:
    """The image in a file, or the part of it inside (left, top, right, bottom) pixels."""

    path: Path
    crop: Box | None = None
    pixels: Pixels | None = None
    """How its pixels are read, whatever is asked for."""
    by_content: bool = False
    """Whether other data may have a file of the same name and size, so that the start of its content counts, too."""

    def __call__(self, pixels: Pixels = "pil") -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        image = _decoded(self._bytes, str(self.path), self.pixels or pixels)
        return image if self.crop is None else image.crop(self.crop)

    def _bytes(self) -> bytes:
        if self.path.suffix != ".npy":
            return self.path.read_bytes()
        try:  # EqBen has arrays of blue, green and red
            pixels = np.load(self.path, allow_pickle=False)
            return encoded(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]), "RGB"), "BMP")
        except (ValueError, TypeError, IndexError, EOFError) as error:
            raise BadSampleError("not an image as an array") from error


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
        """The image of a sample, first those under ``IMAGE_EXTENSIONS``; raises PowerclipError if it has none."""
        others = sorted(extension for extension in entry.members if f".{extension}" in IMAGE_SUFFIXES)
        extension = next((one for one in (*IMAGE_EXTENSIONS, *others) if one in entry.members), None)
        if extension is None:
            raise PowerclipError(
                f"sample {entry.key} of {entry.shard} has no image, only {', '.join(sorted(entry.members))}; expected "
                f"KEY.{'|'.join(IMAGE_EXTENSIONS)}, or another extension of an image"
            )
        return cls(entry.shard, entry.key, extension, entry.members[extension], content, pixels)

    def __call__(self, pixels: Pixels = "pil") -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        entry = SamplePlace(shard=self.shard, key=self.key, members={self.extension: self.place})
        what = f"the image of sample {self.key} in {self.shard}"
        return _decoded(lambda: entry.files(only={self.extension})[self.extension], what, self.pixels or pixels)


@dataclass(frozen=True)
class TableImage:
    """The image in one cell of a Parquet file, as Hugging Face's datasets store it."""

    path: Path
    group: int
    """Row group, and the row in it."""
    row: int
    column: str

    def __call__(self, pixels: Pixels = "pil") -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        what = f"column {self.column} of row {self.row} in row group {self.group} of {self.path}"
        return _decoded(self._bytes, what, pixels)

    def _bytes(self) -> bytes:
        from pyarrow import ArrowException

        try:
            cell = _cells(self.path, self.group, self.column)[self.row]
            return cell["bytes"] if isinstance(cell, dict) else cell  # type: ignore[no-any-return]
        except (ArrowException, LookupError) as error:
            raise BadSampleError(str(error)) from error


@lru_cache(maxsize=4)
def _cells(path: Path, group: int, column: str) -> list[Any]:
    """The images of a row group: it is read at once, and neighbours are opened one after the other."""
    with open_parquet(path) as file:
        return [row[column] for row in read_group(path, file, group, [column])]


def open_picture(picture: Picture, pixels: Pixels = "pil") -> Image.Image:
    """The image itself; ``pixels`` says how those of public data sets are read."""
    if isinstance(picture, FileImage | ShardImage | TableImage):
        return picture(pixels)
    return picture if isinstance(picture, Image.Image) else picture()


def _decoded(read: Callable[[], bytes], what: str, pixels: Pixels) -> Image.Image:
    try:
        image = decode_for_benchmark(read()) if pixels == "pil" else decode_image(read())
    except (OSError, ValueError) as error:
        raise PowerclipError(f"{what} cannot be read ({error}); download it again") from error
    if image.width * image.height > MAX_PIXELS:
        warnings.warn(f"{what} has {image.width} x {image.height} pixels", stacklevel=2)
    return image


def only_images(folder: Path, found: Iterable[Iterable[Path]], *, ignored: Collection[str] = ()) -> list[list[Path]]:
    """The images among the paths of each class in a folder.

    The first process warns of what else is there, but for files with the extensions ``ignored``.
    """
    images: list[list[Path]] = []
    others = Counter[str]()
    for paths in found:
        images.append([])
        for path in paths:
            suffix = path.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                images[-1].append(path)
            elif suffix not in ignored:
                others["folder" if path.is_dir() else suffix[:20] or "no extension"] += 1
    if others and rank() == 0:  # all processes read all
        listed = counted(others)
        listed = listed if len(listed) < 300 else f"{listed[:300]}..."
        warnings.warn(f"files in {folder} that are not read as images: {listed}", stacklevel=3)
    return images


def key_of(picture: Content) -> Hashable:
    """What equal images or texts share as long as both are held: the opener or text itself, or an open image's id."""
    return picture if isinstance(picture, Hashable) else id(picture)


def whole(shown: Shown) -> Picture:
    """The image that a region is part of, or an image itself."""
    return shown.image if isinstance(shown, Region) else shown


def identity(picture: Shown) -> str:
    """What an image is called wherever its data set is stored; its content if that is at hand. No file is looked at."""
    match picture:
        case Region():
            return f"{identity(picture.image)} {picture.box}"
        case FileImage():
            return f"{picture.path.name} {picture.crop}"
        case ShardImage():
            return picture.content or f"{picture.shard.name} {picture.key} {picture.place}"
        case TableImage():
            return f"{picture.path.name} {picture.group} {picture.row} {picture.column}"
        case Image.Image():
            return hashlib.sha256(picture.tobytes()).hexdigest()
    return ""


def stamps(pictures: Iterable[Shown]) -> list[str]:
    """The size of each file with some of the images, once a file, and a hash of its start if it is ``by_content``.

    PowerclipError if a file is gone.
    """
    files = {image.path: image for image in map(whole, pictures) if isinstance(image, FileImage | TableImage)}
    found = []
    for path, image in files.items():
        try:
            stamp = f"{path.stat().st_size}"
            if isinstance(image, FileImage) and image.by_content:
                with path.open("rb") as file:
                    stamp += f" {hashlib.sha256(file.read(START_BYTES)).hexdigest()}"
        except OSError as error:
            raise PowerclipError(f"{path} cannot be read ({error}); download it again") from error
        found.append(stamp)
    return found
