"""What every source provides: chunks of image-caption pairs, one for each shard; and what makes a pair usable."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from powerclip.config import PrepareConfig
from powerclip.config.checks import changed
from powerclip.data.images import decode_image
from powerclip.data.limits import MAX_CAPTION_BYTES, MAX_CAPTIONS, MAX_MEMBER_BYTES
from powerclip.data.sample import CAPTION_EXTENSION, Caption, Sample, read_caption
from powerclip.data.validate import check_annotations
from powerclip.errors import BadSampleError, PowerclipError, UnreadSampleError
from powerclip.pixels import encoded

T = TypeVar("T")

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Extension in the shard of the formats that are copied byte for byte; other formats are converted to PNG. An MPO file,
several images as some phones write them, begins with a complete JPEG."""

Pair = tuple[Sample, Image.Image]
"""A usable sample, and its decoded image: upright RGB."""

Loaded = tuple[Sample, Image.Image | None]
"""The same, without the image where nothing is to be made of it."""

Cell = tuple[str, Any]
"""Captions as a source holds them: the name of where they are from, and a text, a list of texts, or None."""


HASHED = "-_"
"""Between what a key shows of a name and the hash of the rest."""
LINE_END = re.compile(r"\r\n?|\n")

CUT = "tar damaged or truncated (its rest is lost)"
"""Why an item that stands for the rest of a tar cannot be used."""


class UnusedFileError(BadSampleError):
    """A file of the source that is no part of a pair; its message is the kind, as in ``Source.ignored``."""


class Item(NamedTuple):
    """A pair that may or may not be usable."""

    name: str
    """Where it is in the source, for messages."""
    load: Callable[[], Loaded]
    """Reads the pair; raises ``BadSampleError`` if it cannot be used, ``UnusedFileError`` if it is a file by itself."""


Chunk = Callable[[], Iterator[Item]]
"""Reads some pairs of a source, in order and in bounded memory. It is pickled for another process, which opens the
files itself, so it is small: a ``functools.partial`` of a function of a module."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pairs in a fixed order."""

    chunks: Iterable[Chunk]
    """``count`` of them, each of which becomes one shard; to be iterated over once."""
    count: int
    fingerprint: str
    """Changes when the source does."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Number of files in the source that are not pairs, by kind: an extension, "hidden", ...; others are items."""
    choice: str = ""
    """What was chosen for the user in reading it, in words."""


READ_FROM = {
    "count": "generated scenes",
    "seed": "generated scenes",
    "image_column": "tables",
    "caption_column": "tables",
    "header": "CSV and TSV files",
    "caption_key": "tars",
    "caption_lines": "captions in files",
    "replace_annotations": "tars and generated scenes",
    "replace_regions": "tars and generated scenes",
    "join": "tables of --captions",
    "join_column": "tables of --captions",
}
"""Options that are read from some sources only."""


def require_read(config: PrepareConfig, source: str | Path, *names: str) -> None:
    """Check that no option is given in vain; ``names`` are those that this source reads of ``READ_FROM``."""
    for name, value in changed(config).items():
        if name in READ_FROM and name not in names:
            option = f"--{'no-' * (value is False)}{name.replace('_', '-')}"
            raise PowerclipError(f"{option} has no effect on {source}: it is for {READ_FROM[name]}; leave it out")


def in_chunks(read: Callable[[Sequence[T], int], Iterator[Item]], rows: Iterable[T], size: int) -> Iterator[Chunk]:
    """Chunks that carry their rows, ``size`` each; ``read`` takes the rows and the number of the first."""
    rows, first = iter(rows), 0
    while part := tuple(islice(rows, size)):
        yield partial(read, part, first)
        first += size


def decoded(sample: Sample) -> Pair:
    """A sample and its image, which is decoded here, once, so that a corrupt one is found now and not in training.

    The annotations are checked. An image that is not of a ``KEPT`` format becomes a PNG. BadSampleError if it cannot be
    used.
    """
    image = decode_image(sample.image)
    check_annotations(sample, (image.height, image.width))
    if image.format in KEPT:  # by content: a file's own extension may be wrong
        return replace(sample, image_extension=KEPT[image.format]), image
    if len(data := encoded(image, "PNG")) > MAX_MEMBER_BYTES:
        raise BadSampleError("file too large as PNG")
    return replace(sample, image=data, image_extension="png"), image


def make_pair(key: str, image: bytes, *cells: Cell | str | bytes, lines: bool = False) -> Pair:
    """An image and its captions without annotations; BadSampleError if it cannot be used. See ``read_captions``."""
    return pair_of(key, image, read_captions(cells, lines=lines))


def pair_of(key: str, image: bytes, read: tuple[list[Caption], tuple[str, ...]]) -> Pair:
    """An image and what ``read_captions`` returned for it; BadSampleError if the image cannot be used."""
    if len(image) > MAX_MEMBER_BYTES:
        raise BadSampleError("file too large")
    captions, remarks = read
    sample = Sample(key=key, image=image, image_extension="", caption="", remarks=remarks)
    return decoded(sample.with_captions(captions))


def read_captions(cells: Iterable[Cell | str | bytes], *, lines: bool = False) -> tuple[list[Caption], tuple[str, ...]]:
    """The usable captions of an image, cleaned, in order, and why others cannot be used.

    A cell's texts may also be objects {"text": ..., "source": ...}, and with ``lines`` each line is a text.
    BadSampleError with the first reason if none can be used, or if there are more than ``MAX_CAPTIONS`` texts.
    """
    captions: list[Caption] = []
    reasons: list[str] = []
    for source, text in _texts(cells, lines=lines):
        if len(captions) + len(reasons) == MAX_CAPTIONS:
            raise BadSampleError(f"more than {MAX_CAPTIONS} captions")
        if not isinstance(text, str | bytes):
            reasons.append("no caption" if text is None else "caption is not text")
            continue
        try:
            captions.append(read_caption(text, source=source))
        except BadSampleError as error:
            reasons.append(str(error))
    if not captions:
        raise BadSampleError(reasons[0] if reasons else "empty caption")
    return captions, tuple(reasons)


def _texts(cells: Iterable[Cell | str | bytes], *, lines: bool) -> Iterator[tuple[str, Any]]:
    """The texts in cells, or what is in their place, each with its source."""
    for cell in cells:
        source, value = cell if isinstance(cell, tuple) else (CAPTION_EXTENSION, cell)
        for text in (value or [None]) if isinstance(value, list | tuple) else [value]:
            name = source
            if isinstance(text, Mapping):
                name, text = str(text.get("source") or source), text.get("text")
            if lines and isinstance(text, str | bytes) and len(text) <= MAX_CAPTION_BYTES:
                # Bytes end lines at \r\n, \r and \n alone.
                found = text.splitlines() if isinstance(text, bytes) else LINE_END.split(text)
                yield from ((name, line) for line in found if line.strip())
            else:
                yield name, text


def load_files(key: str, image: Path, caption: Path | None, *, lines: bool = False) -> Pair:
    """A pair of two files; raises what ``make_pair`` does."""
    if caption is None:
        raise BadSampleError("no caption")
    text = read_file(caption, MAX_CAPTION_BYTES, missing="no caption")
    return make_pair(key, read_file(image, MAX_MEMBER_BYTES, missing="image file missing"), text, lines=lines)


def read_file(path: Path, limit: int, *, missing: str) -> bytes:
    """The bytes of a file; if there are more than ``limit``, which ``make_pair`` refuses, the first ``limit + 1``."""
    try:
        if path.is_file():  # a device or a pipe is not
            with path.open("rb") as file:
                return file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadSampleError("file cannot be read") from error
    raise UnreadSampleError(missing)


def bad(name: str, reason: str, kind: type[BadSampleError] = BadSampleError) -> Item:
    """An item that cannot be used, and why."""
    return Item(name, partial(_refuse, kind(reason)))


def unused(name: str, kind: str) -> Item:
    """An item that is a file without use."""
    return Item(name, partial(_refuse, UnusedFileError(kind)))


def _refuse(error: BadSampleError) -> Pair:
    raise error


def make_key(index: int, name: str) -> str:
    """A key that sorts in the source's order and shows where the sample came from."""
    return f"{index:08d}-{shown_name(name)}"


def shown_name(name: str) -> str:
    """The name of a file in the form in which a key shows it, without its extension.

    If that is not all, as there are other characters in it, or a folder before it, a hash of the last folder and the
    name is at the end: different names have different forms.
    """
    path = Path(name)
    shown, whole = re.sub("[^A-Za-z0-9_-]", "-", path.stem)[:60], f"{path.parent.name}/{path.stem}".lstrip("/")
    return shown if shown == whole else f"{shown}{HASHED}{digest([whole])[:8]}"


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

    def kind(path: Path) -> str:
        if path.name.startswith("."):
            return "hidden"
        if path.is_symlink() and not path.exists():
            return "broken link"
        if path.suffix.lower() == ".txt":
            return "caption without an image"
        return "folder" if path.is_dir() else path.suffix.lower()[:20] or "no extension"

    return Counter(map(kind, sorted(paths)))
