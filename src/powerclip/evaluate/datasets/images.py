"""Pictures of evaluation data, opened when they are needed; one that cannot be read stops the evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from powerclip.data.images import decode_image
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.tasks import Picture

Box = tuple[int, int, int, int]


def open_picture(picture: Picture) -> Image.Image:
    """The image itself."""
    return picture if isinstance(picture, Image.Image) else picture()


def file_picture(path: Path, *, crop: Box | None = None) -> Picture:
    """The picture in a file, or the part of it inside (left, top, right, bottom) pixels."""
    return partial(_read_file, path, crop)


def member_picture(shard: Path, offset: int, size: int) -> Picture:
    """The picture that lies in a tar file, ``size`` bytes from ``offset`` on."""
    return partial(_read_member, shard, offset, size)


def read_member(shard: Path, offset: int, size: int) -> bytes:
    """Bytes of a tar file."""
    with shard.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def _read_file(path: Path, crop: Box | None) -> Image.Image:
    try:
        image = decode_image(path.read_bytes())
    except (BadSampleError, OSError) as error:
        raise PowerclipError(f"{path} cannot be read ({error}); get this file anew") from error
    return image if crop is None else image.crop(crop)


def _read_member(shard: Path, offset: int, size: int) -> Image.Image:
    try:
        return decode_image(read_member(shard, offset, size))
    except (BadSampleError, OSError) as error:
        raise PowerclipError(f"the image at byte {offset} of {shard} cannot be read ({error}); get it anew") from error


def find_images(root: Path, names: Sequence[str]) -> list[Path]:
    """Where the named images lie: in a folder itself, or all in one of its sub-folders, at most two levels down.

    Raises:
        PowerclipError: some are not there.
    """
    if not names:
        return []
    level = [root]
    for _depth in range(3):
        for folder in level:
            if (folder / names[0]).is_file():
                return _all_in(folder, names)
        level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    raise PowerclipError(
        f"{names[0]} is not under {root}; put the images of the data set there, in a folder of any name"
    )


def _all_in(folder: Path, names: Sequence[str]) -> list[Path]:
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise PowerclipError(f"{len(missing)} of {len(names)} images are not in {folder}: {missing[0]}, ...; add them")
    return paths
