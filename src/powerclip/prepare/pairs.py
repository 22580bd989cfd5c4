"""What every source provides: chunks of image-caption pairs, each of which becomes one shard; and what makes a pair usable."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from powerclip.data.images import decode_with_format
from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.data.sample import Sample, read_caption
from powerclip.errors import BadSampleError
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import RegionAnnotation

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Extension in the shard of the formats that are copied byte for byte; other formats are converted to PNG. An MPO file,
several images as some phones write them, begins with a complete JPEG."""

Pair = tuple[Sample, Image.Image]
"""A usable sample, and its decoded image: upright RGB."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A pair that may or may not be usable."""

    name: str
    """Where it is in the source, for messages."""
    load: Callable[[], Pair]
    """Reads the pair; raises ``BadSampleError`` if it cannot be used."""


Chunk = Callable[[], Iterator[Item]]
"""Reads some pairs of a source, in order and in bounded memory. It is pickled for another process, which opens the files
itself, so it is small: a ``functools.partial`` of a function of a module."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pairs in a fixed order."""

    chunks: Callable[[], Iterable[Chunk]]
    """Lists the chunks; each becomes one shard."""
    count: int
    """Number of chunks."""
    fingerprint: str
    """Changes when the source does."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Number of files in the source that are not pairs, by kind: an extension, "hidden", ..."""


def make_pair(
    key: str,
    image: bytes,
    caption: bytes | str,
    *,
    tree: PhraseTree | None = None,
    metadata: Mapping[str, Any] | None = None,
    regions: RegionAnnotation | None = None,
) -> Pair:
    """A complete pair; the image is decoded here, once, so that a corrupt one is found now and not in training.

    A caption without a tree is cleaned.

    Raises:
        BadSampleError: it cannot be used.
    """
    if isinstance(caption, str):
        caption = caption.encode("utf-8", errors="surrogatepass")
    text, metadata = read_caption(caption, metadata, clean=tree is None)
    decoded, kind = decode_with_format(image)
    extension = KEPT.get(kind)  # by content: a file's own extension may be wrong
    if extension is None:
        buffer = io.BytesIO()
        decoded.save(buffer, "PNG")
        image, extension = buffer.getvalue(), "png"
    sample = Sample(
        key=key, image=image, image_extension=extension, caption=text, tree=tree, metadata=metadata, regions=regions
    )
    return sample, decoded


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        BadSampleError: it is missing, cannot be read, or is too large.
    """
    try:
        if not path.is_file():  # nor is a device or a pipe an image
            raise BadSampleError("image file missing")
        if path.stat().st_size > MAX_MEMBER_BYTES:
            raise BadSampleError("file too large")
        return path.read_bytes()
    except BadSampleError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadSampleError("file cannot be read") from error


def bad(name: str, reason: str) -> Item:
    """An item that cannot be used, and why."""

    def load() -> Pair:
        raise BadSampleError(reason)

    return Item(name=name, load=load)


def make_key(index: int, name: str) -> str:
    """A key that sorts in the source's order and shows where the sample came from."""
    return f"{index:08d}-{re.sub('[^A-Za-z0-9_-]', '-', Path(name).stem)[:60]}"


def source_of(chunks: Sequence[Chunk], *, fingerprint: str, ignored: Mapping[str, int] | None = None) -> Source:
    """A source whose chunks are few enough to be held in a list."""
    return Source(chunks=lambda: chunks, count=len(chunks), fingerprint=fingerprint, ignored=ignored or {})


def digest(*lists: Iterable[str]) -> str:
    """A hash of strings."""
    sha = hashlib.sha256()
    for values in lists:
        for value in values:
            sha.update(value.encode("utf-8", errors="surrogatepass") + b"\0")
    return sha.hexdigest()


def stamp(path: Path) -> str:
    """Size and modification time of a file, "-" if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return "-"
    return f"{status.st_size}:{status.st_mtime_ns}"


def count_kinds(paths: Iterable[Path]) -> Counter[str]:
    """Number of files by kind, for ``Source.ignored``."""
    return Counter(_kind(path) for path in paths)


def _kind(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink() and not path.exists():
        return "broken link"
    if path.suffix.lower() == ".txt":
        return "caption without an image"
    return "folder" if path.is_dir() else path.suffix.lower()[:20] or "no extension"
