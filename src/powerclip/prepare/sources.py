"""Where image-caption pairs come from: one door, one small reader a kind of source."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from powerclip.data.decode import decode_image
from powerclip.data.sample import BadSampleError, Sample, decode_caption
from powerclip.data.scenes import generate
from powerclip.types import PowerclipError

KEPT = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Images that stay as they are; others are written anew as PNG."""
OTHER = {".bmp", ".gif", ".tif", ".tiff", ".ppm"}
IMAGE_COLUMNS = ("path", "image", "filepath", "file", "filename", "image_path", "img", "file_name")
CAPTION_COLUMNS = ("caption", "text", "title", "description", "caption_text")
TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A pair that may or may not be usable."""

    name: str
    """Where it stands in the source, for messages."""
    load: Callable[[], Sample]
    """Reads the pair; raises ``BadSampleError`` where it cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pairs in a fixed order."""

    items: list[Item]
    fingerprint: str
    """Changes when the source does."""


def open_source(source: str, *, image_column: str | None, caption_column: str | None, count: int, seed: int) -> Source:
    """Find the pairs of a source.

    Raises:
        PowerclipError: there is no such source, or it holds no pair.
    """
    if source.startswith("scenes:"):
        return _scenes(source.removeprefix("scenes:"), count, seed)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise PowerclipError(f"no source at {source}; give a folder, a {', '.join(TABLES)} file, or scenes:train")
    if path.suffix.lower() not in TABLES:
        raise PowerclipError(f"{source} is no source that can be read; give a folder or a {', '.join(TABLES)} file")
    return _table(path, image_column, caption_column)


def _folder(folder: Path) -> Source:
    """Images with a .txt beside each, sub-folders too."""
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {*KEPT, *OTHER} and path.is_file())
    if not images:
        raise PowerclipError(f"no image in {folder}; looked for {', '.join(sorted({*KEPT, *OTHER}))}, sub-folders too")
    if not any(path.with_suffix(".txt").exists() for path in images):
        raise PowerclipError(
            f"none of the {len(images)} images in {folder} has a caption; put NAME.txt beside NAME.jpg"
        )
    names = [str(path.relative_to(folder)) for path in images]
    stamps = [_stamp(path) + _stamp(path.with_suffix(".txt")) for path in images]
    items = [
        Item(name=name, load=_Pair(key=_key(i, name), image=path, caption=path.with_suffix(".txt")))
        for i, (name, path) in enumerate(zip(names, images, strict=True))
    ]
    return Source(items=items, fingerprint=_hash(names, stamps))


def _table(path: Path, image_column: str | None, caption_column: str | None) -> Source:
    """A table of paths, relative to the table, and captions."""
    rows = _read_rows(path)
    if not rows:
        raise PowerclipError(f"{path} has no row")
    columns = [name for name in rows[0] if name is not None]
    image = _column(path, columns, image_column, IMAGE_COLUMNS, "image-column")
    caption = _column(path, columns, caption_column, CAPTION_COLUMNS, "caption-column")
    items = []
    for i, row in enumerate(rows):
        name, text = str(row.get(image) or ""), str(row.get(caption) or "")
        if None in row:  # where csv puts what lies beyond the header's columns
            items.append(Item(name=f"row {i + 1} ({name})", load=_too_many_fields))
            continue
        items.append(
            Item(name=f"row {i + 1} ({name})", load=_Pair(key=_key(i, name), image=path.parent / name, text=text))
        )
    return Source(items=items, fingerprint=_hash([json.dumps(list(row.items())) for row in rows], [image, caption]))


def _too_many_fields() -> Sample:
    raise BadSampleError("more fields than columns (quote captions that hold the separator)")


def _read_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no JSON object")
            return rows
        csv.field_size_limit(2**24)
        return list(
            csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        )
    except (ValueError, csv.Error) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error


def _column(path: Path, columns: list[str], given: str | None, known: tuple[str, ...], option: str) -> str:
    if given is not None:
        if given in columns:
            return given
        close = difflib.get_close_matches(given, columns, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise PowerclipError(f"{path} has no column {given!r}{hint} (columns: {', '.join(columns)})")
    found = next((name for known_name in known for name in columns if name.strip().lower() == known_name), None)
    if found is None:
        raise PowerclipError(
            f"{path} has no column named {', '.join(known[:4])} or the like; name it with --{option} "
            f"(columns: {', '.join(map(str, columns))})"
        )
    return found


def _scenes(split: str, count: int, seed: int) -> Source:
    try:
        samples = list(generate(split, count=count, seed=seed))  # type: ignore[arg-type]
    except ValueError as error:
        raise PowerclipError(f"unknown scenes {split!r}: {error}") from error
    items = [Item(name=sample.key, load=lambda sample=sample: sample) for sample in samples]  # type: ignore[misc]
    return Source(items=items, fingerprint=_hash([split], [f"{count}", f"{seed}"]))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Reads one image file and its caption, from a file or as given."""

    key: str
    image: Path
    caption: Path | None = None
    text: str = ""

    def __call__(self) -> Sample:
        try:
            return self._read()
        except OSError as error:
            raise BadSampleError("file cannot be read") from error

    def _read(self) -> Sample:
        if self.caption is None:
            caption = decode_caption(self.text.encode("utf-8", errors="surrogatepass"))
        elif self.caption.is_file():
            caption = decode_caption(self.caption.read_bytes())
        else:
            raise BadSampleError("no caption")
        if not self.image.is_file():
            raise BadSampleError("image file missing")
        data = self.image.read_bytes()
        decoded = decode_image(data)  # a corrupt image is found here, not in training
        extension = KEPT.get(self.image.suffix.lower())
        if extension is None:
            data, extension = _as_png(decoded), "png"
        return Sample(key=self.key, image=data, image_extension=extension, caption=caption)


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _key(index: int, name: str) -> str:
    """A key that sorts in the source's order and tells where the sample came from."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in Path(name).stem)[:60]
    return f"{index:08d}-{stem}"


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "-"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _hash(*lists: list[str]) -> str:
    digest = hashlib.sha256()
    for values in lists:
        for value in values:
            digest.update(value.encode("utf-8", errors="surrogatepass") + b"\0")
    return digest.hexdigest()
