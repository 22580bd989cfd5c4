"""What every source gives: chunks of pairs, each of which becomes one output shard, and what makes a pair usable."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from powerclip.data.images import decode_with_format
from powerclip.data.sample import Sample, read_caption
from powerclip.data.shards import MAX_MEMBER_BYTES
from powerclip.errors import BadSampleError
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import RegionAnnotation

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Images that stay as they are, by format; others are written anew as PNG. MPO, several pictures in a file as phones
write them, begins with a whole JPEG."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A pair that may or may not be usable."""

    name: str
    """Where it stands in the source, for messages."""
    load: Callable[[], Sample]
    """Reads the pair; raises ``BadSampleError`` where it cannot be used."""


class Chunk(Protocol):
    """Some pairs of a source; small, so that it can be sent to another process, where it opens its own files."""

    def items(self) -> Iterator[Item]:
        """The pairs, in order, in bounded memory."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pairs in a fixed order."""

    chunks: Sequence[Chunk]
    """What becomes one shard each."""
    fingerprint: str
    """Changes when the source does."""


def make_sample(
    key: str,
    image: bytes,
    caption: bytes | str,
    *,
    tree: PhraseTree | None = None,
    metadata: Mapping[str, Any] | None = None,
    regions: RegionAnnotation | None = None,
) -> Sample:
    """A pair that is complete: a corrupt image is found here, not in training. A caption without a tree is cleaned.

    Raises:
        BadSampleError: it cannot be used.
    """
    if isinstance(caption, str):
        caption = caption.encode("utf-8", errors="surrogatepass")
    text, metadata = read_caption(caption, metadata, clean=tree is None)
    decoded, kind = decode_with_format(image)
    extension = KEPT.get(kind)  # by content: a suffix may lie
    if extension is None:
        image, extension = _as_png(decoded), "png"
    return Sample(
        key=key,
        image=image,
        image_extension=extension,
        caption=text,
        tree=tree,
        metadata=metadata,
        regions=regions,
    )


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        BadSampleError: it is not there, cannot be read, or is too large.
    """
    try:
        if not path.is_file():  # a device or a pipe is no image either
            raise BadSampleError("image file missing")
        if path.stat().st_size > MAX_MEMBER_BYTES:
            raise BadSampleError("file too large")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, BadSampleError):
            raise
        raise BadSampleError("file cannot be read") from error


def bad(name: str, reason: str) -> Item:
    """An item that cannot be used, and why."""

    def load() -> Sample:
        raise BadSampleError(reason)

    return Item(name=name, load=load)


def make_key(index: int, name: str) -> str:
    """A key that sorts in the source's order and tells where the sample came from."""
    return f"{index:08d}-{re.sub('[^A-Za-z0-9_-]', '-', Path(name).stem)[:60]}"


def digest(*lists: Iterable[str]) -> str:
    """A hash of strings."""
    found = hashlib.sha256()
    for values in lists:
        for value in values:
            found.update(value.encode("utf-8", errors="surrogatepass") + b"\0")
    return found.hexdigest()


def stamp(path: Path) -> str:
    """Size and time of change of a file, "-" where there is none."""
    try:
        status = path.stat()
    except OSError:
        return "-"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
