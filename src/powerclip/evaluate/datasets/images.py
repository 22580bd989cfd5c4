"""Images of evaluation data: where they are, and opening them when they are needed.

An image that cannot be read stops the evaluation. Openers are small values: equal ones open the same image, by which
the encoder knows an image that it has encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.sample import IMAGE_EXTENSIONS
from powerclip.data.shards import SamplePlace
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.tasks import Picture

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class FileImage:
    """The image in a file, or the part of it inside (left, top, right, bottom) pixels."""

    path: Path
    crop: Box | None = None

    def __call__(self) -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        try:
            image = decode_image(self.path.read_bytes())
        except (BadSampleError, OSError) as error:
            raise PowerclipError(f"{self.path} cannot be read ({error}); download this file again") from error
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

    @classmethod
    def of(cls, entry: SamplePlace, *, content: str = "") -> ShardImage:
        """The image of a sample; raises PowerclipError if it has none."""
        extension = next((extension for extension in IMAGE_EXTENSIONS if extension in entry.members), None)
        if extension is None:
            raise PowerclipError(
                f"sample {entry.key} of {entry.shard} has no image under {', '.join(IMAGE_EXTENSIONS)}"
            )
        return cls(entry.shard, entry.key, extension, entry.members[extension], content)

    def __call__(self) -> Image.Image:
        """Open it; raises PowerclipError if it cannot be read."""
        entry = SamplePlace(shard=self.shard, key=self.key, members={self.extension: self.place})
        try:
            return decode_image(entry.files(only={self.extension})[self.extension])
        except BadSampleError as error:
            raise PowerclipError(
                f"the image of sample {self.key} in {self.shard} cannot be read ({error}); download the shard again"
            ) from error


def open_picture(picture: Picture) -> Image.Image:
    """The image itself."""
    return picture if isinstance(picture, Image.Image) else picture()


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


@contextmanager
def release_json(path: Path) -> Iterator[Any]:
    """The JSON in a file of a release, or the list of its lines in a ``.jsonl``.

    PowerclipError if the file cannot be read, or the block looks for content that it does not have.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else None
        value = json.loads(text) if lines is None else [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise PowerclipError(f"{path} cannot be read as JSON: {error}") from error
    try:
        yield value
    except (KeyError, TypeError, AttributeError) as error:
        raise PowerclipError(
            f"{path.name} does not have its release's format ({type(error).__name__}: {error}); download it again"
        ) from error


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files and folders below a folder whose names match, without hidden ones and macOS's in archives."""
    return sorted(path for path in folder.rglob(pattern) if not _is_hidden(path.relative_to(folder)))


def children(folder: Path) -> list[Path]:
    """The files and folders in a folder, by name, without the same."""
    return sorted(path for path in folder.iterdir() if not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(name.startswith(".") or name == "__MACOSX" for name in path.parts)


def find_images(root: Path, names: Sequence[str]) -> list[Path]:
    """Where the named images are: in a folder itself, or all in one of its sub-folders, at most two levels down.

    PowerclipError if some are missing.
    """
    if not names:
        return []
    level = [root]
    for _depth in range(3):
        folder = next((folder for folder in level if (folder / names[0]).is_file()), None)
        if folder is not None:
            paths = [folder / name for name in names]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise PowerclipError(
                    f"{len(missing)} of {len(names)} images are not in {folder}: {missing[0]}, ...; add them"
                )
            return paths
        level = [child for folder in level for child in children(folder) if child.is_dir()]
    raise PowerclipError(
        f"{names[0]} is not under {root}; put the images of the data set there, in a folder of any name"
    )
