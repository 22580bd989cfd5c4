"""What every table has in common: columns of images and captions, and rows that become pairs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from powerclip.data.sample import Sample
from powerclip.data.shards import MAX_MEMBER_BYTES
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare.source import Item, bad, make_key, make_sample, read_image

IMAGE_COLUMNS = (
    "path", "image", "filepath", "file", "filename", "image_path", "img", "file_name", "jpg", "png", "url", "image_url"
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "text", "title", "description", "caption_text", "captions", "txt")
NOT_FETCHED = "URL not fetched, expected as HOST/PATH beside the table"

Row = Mapping[Any, Any]


class Rows(Protocol):
    """Some rows of a table, read where they lie."""

    def read(self) -> Iterator[Row | str]:
        """The rows in order; in place of one that cannot be read, the reason."""


@dataclass(frozen=True, kw_only=True)
class TableChunk:
    """Rows of a table, with the columns of their image and caption."""

    rows: Rows
    first: int
    """Number of the first row in the table."""
    image: str
    caption: str
    folder: Path
    """Where relative paths begin."""

    def items(self) -> Iterator[Item]:
        """The pairs of the rows."""
        for i, row in enumerate(self.rows.read(), start=self.first):
            if isinstance(row, str):
                yield bad(f"row {i + 1}", row)
                continue
            image, caption = row.get(self.image), row.get(self.caption)
            path = image.get("path") if isinstance(image, Mapping) else image
            name = path if isinstance(path, str) else ""
            place = f"row {i + 1} ({name[:200]})" if name else f"row {i + 1}"
            if None in row:  # where csv puts what lies beyond the header's columns
                yield bad(place, "more fields than columns (quote captions that hold the separator)")
            else:
                yield Item(name=place, load=partial(_load, make_key(i, name), image, caption, self.folder))


def _load(key: str, image: Any, caption: Any, folder: Path) -> Sample:
    if isinstance(image, Mapping):  # as Hugging Face stores images
        image = image.get("bytes") or image.get("path")
    if isinstance(caption, (list, tuple)):  # several captions of an image: the first
        caption = caption[0] if caption else None
    if caption is None or not isinstance(caption, (str, bytes)):
        raise BadSampleError("empty caption" if caption is None else "caption is no text")
    if isinstance(image, str) and image:
        image = read_image(find_image(image, folder))
    if not isinstance(image, bytes) or not image:
        raise BadSampleError("no image")
    if len(image) > MAX_MEMBER_BYTES:
        raise BadSampleError("file too large")
    return make_sample(key, image, caption)


def find_image(cell: str, folder: Path) -> Path:
    """The file that a cell names: by its path, by a file:// URL, or by the URL that it was fetched from.

    Nothing is fetched here: what was is expected where ``wget -x`` puts it.

    Args:
        cell: of an image column.
        folder: where relative paths begin.

    Raises:
        BadSampleError: the file of a URL is not there.
    """
    if not re.match("[A-Za-z][A-Za-z0-9+.-]*://", cell):
        return folder / cell
    try:
        url = urlsplit(cell)
    except ValueError as error:
        raise BadSampleError("malformed URL") from error
    decoded = unquote(url.path, errors="surrogateescape")
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        return Path(decoded)
    host = url.netloc.rpartition("@")[2].lower()
    query = "?" + url.query.replace("/", "%2F") if url.query else ""
    for path in (decoded, url.path):
        place = Path(host, path.lstrip("/") + query)
        if url.scheme in ("http", "https") and host and ".." not in place.parts and _is_file(folder / place):
            return folder / place
    raise BadSampleError(NOT_FETCHED)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def find_columns(path: Path, columns: Sequence[str], image: str | None, caption: str | None) -> tuple[str, str]:
    """The columns of images and of captions: those given, or those of well-known names.

    Raises:
        PowerclipError: the table has no such columns.
    """
    return (
        _column(path, columns, image, IMAGE_COLUMNS, "image-column"),
        _column(path, columns, caption, CAPTION_COLUMNS, "caption-column"),
    )


def _column(path: Path, columns: Sequence[str], given: str | None, known: tuple[str, ...], option: str) -> str:
    seen = ", ".join(column[:40] for column in columns[:40])
    if given is not None:
        if given in columns:
            return given
        close = difflib.get_close_matches(given, columns, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise PowerclipError(f"{path} has no column {given!r}{hint} (columns: {seen})")
    found = next((name for known_name in known for name in columns if name.strip().lower() == known_name), None)
    if found is None:
        raise PowerclipError(
            f"{path} has no column named {', '.join(known[:4])} or the like; name it with --{option} (columns: {seen})"
        )
    return found
