"""Tables of images and captions: CSV, TSV, JSONL, Parquet, and folders that Hugging Face's datasets saved.

A table is walked through once to find where its chunks begin; each chunk then reads its own rows, so that a table of
millions of rows is never held in memory.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from powerclip.data.sample import BadSampleError, Sample
from powerclip.prepare.items import Item, Source, bad, digest, make_key, make_sample, read_image, stamp
from powerclip.types import PowerclipError

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("path", "image", "filepath", "file", "filename", "image_path", "img", "file_name", "jpg", "png")
CAPTION_COLUMNS = ("caption", "text", "title", "description", "caption_text", "captions", "txt")
MAX_LINE_BYTES = 2**24
"""Longer lines of a table are cut, and then are no row."""

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
        image = read_image(folder / image)
    if not isinstance(image, bytes) or not image:
        raise BadSampleError("no image")
    return make_sample(key, image, caption)


def open_table(path: Path, samples_per_shard: int, *, image_column: str | None, caption_column: str | None) -> Source:
    """The pairs of a table file; relative paths count from its folder.

    Raises:
        PowerclipError: it cannot be read, has no row, or its columns cannot be told.
    """
    if path.suffix.lower() == ".parquet":
        return _open_parquet([path], samples_per_shard, image_column, caption_column)
    try:
        if path.suffix.lower() == ".jsonl":
            columns, offsets, rows, content = _scan_json(path, samples_per_shard)
            header = None
        else:
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            columns, offsets, rows, content = _scan_csv(path, separator, samples_per_shard)
            header = (separator, tuple(columns))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error
    if not rows:
        raise PowerclipError(f"{path} has no row")
    image, caption = _columns(path, columns, image_column, caption_column)
    chunks = []
    for number, offset in enumerate(offsets):
        first = number * samples_per_shard
        part = _TextRows(path, offset, min(samples_per_shard, rows - first), header)
        chunks.append(TableChunk(rows=part, first=first, image=image, caption=caption, folder=path.parent))
    return Source(chunks=chunks, fingerprint=digest([content, image, caption]))


class _Lines:
    """Lines of a file as text, with the place of the next one; bytes that are no UTF-8 come through as surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position, self.hash = file, file.tell(), hashlib.sha256()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        if self.position == 0:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError("it is UTF-16; save it as UTF-8")
            line_text = line.removeprefix(b"\xef\xbb\xbf")
        else:
            line_text = line
        self.position += len(line)
        self.hash.update(line)
        return line_text.decode("utf-8", errors="surrogateescape")


def _scan_csv(path: Path, separator: str, step: int) -> tuple[list[str], list[int], int, str]:
    """Columns, the offset of each chunk's first row, the number of rows and the hash of a table."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=separator)
        columns = next(reader, [])
        offsets: list[int] = []
        rows = 0
        while True:
            place = lines.position
            row = next(reader, None)
            if row is None:
                return columns, offsets, rows, lines.hash.hexdigest()
            if row:
                if rows % step == 0:
                    offsets.append(place)
                rows += 1


def _scan_json(path: Path, step: int) -> tuple[list[str], list[int], int, str]:
    columns: list[str] = []
    offsets: list[int] = []
    rows = 0
    with path.open("rb") as file:
        lines = _Lines(file)
        place = 0
        for line in lines:
            if line.strip():
                if not rows:
                    first = json.loads(line)
                    if not isinstance(first, dict):
                        raise ValueError("its first line is no JSON object")
                    columns = list(first)
                if rows % step == 0:
                    offsets.append(place)
                rows += 1
            place = lines.position
        return columns, offsets, rows, lines.hash.hexdigest()


@dataclass(frozen=True)
class _TextRows:
    """Rows of a CSV, TSV or JSONL file, from a byte on."""

    path: Path
    offset: int
    count: int
    header: tuple[str, tuple[str, ...]] | None
    """Separator and columns; None for JSONL."""

    def read(self) -> Iterator[Row | str]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            lines = _Lines(file)
            if self.header is None:
                yield from islice((_json_row(line) for line in lines if line.strip()), self.count)
                return
            csv.field_size_limit(MAX_LINE_BYTES)
            separator, columns = self.header
            yield from islice(csv.DictReader(lines, columns, delimiter=separator), self.count)


def _json_row(line: str) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "line is no JSON"
    return row if isinstance(row, dict) else "line is no JSON object"


def open_parquet_folder(
    folder: Path, samples_per_shard: int, *, image_column: str | None, caption_column: str | None
) -> Source:
    """The pairs of a folder of Parquet files, in the order of their names."""
    return _open_parquet(sorted(folder.glob("*.parquet")), samples_per_shard, image_column, caption_column)


def _open_parquet(paths: Sequence[Path], step: int, image_column: str | None, caption_column: str | None) -> Source:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise PowerclipError(
            "Parquet tables need pyarrow, which is not installed; pip install 'powerclip[parquet]'"
        ) from error
    chunks, names, first = [], ("", ""), 0
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            columns, rows = file.schema_arrow.names, file.metadata.num_rows
        except (ArrowException, OSError) as error:
            raise PowerclipError(f"cannot read the table {path}: {error}") from error
        names = _columns(path, columns, image_column, caption_column)
        for start in range(0, rows, step):
            part = _ParquetRows(path, start, min(step, rows - start), names)
            chunks.append(
                TableChunk(rows=part, first=first + start, image=names[0], caption=names[1], folder=path.parent)
            )
        first += rows
    if not chunks:
        raise PowerclipError(f"{paths[0]} has no row")
    return Source(
        chunks=chunks, fingerprint=digest((path.name for path in paths), (stamp(path) for path in paths), names)
    )


@dataclass(frozen=True)
class _ParquetRows:
    """Rows of a Parquet file; only the row groups they lie in are read, and of these a part at a time."""

    path: Path
    start: int
    count: int
    columns: tuple[str, str]

    def read(self) -> Iterator[Row | str]:
        from pyarrow import parquet

        file = parquet.ParquetFile(self.path)
        groups, before, position = [], 0, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if position < self.start + self.count and position + rows > self.start:
                groups.append(group)
            elif not groups:
                before += rows
            position += rows
        batches = file.iter_batches(batch_size=256, row_groups=groups, columns=list(self.columns))
        rows_of = (row for batch in batches for row in batch.to_pylist())
        yield from islice(rows_of, self.start - before, self.start - before + self.count)


def is_dataset(folder: Path) -> bool:
    """Whether Hugging Face's ``save_to_disk`` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def open_dataset(
    folder: Path, samples_per_shard: int, *, image_column: str | None, caption_column: str | None
) -> Source:
    """The pairs of a folder that Hugging Face's ``save_to_disk`` wrote.

    Raises:
        PowerclipError: datasets is not installed, or the folder holds several splits or other columns.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if is_dataset(path))
        raise PowerclipError(
            f"{folder} holds the splits {', '.join(splits)}; name one: {folder / (splits or ['?'])[0]}"
        )
    table = _load_dataset(folder)
    image, caption = _columns(folder, table.column_names, image_column, caption_column)
    chunks = []
    for start in range(0, len(table), samples_per_shard):
        part = _DatasetRows(folder, start, min(samples_per_shard, len(table) - start), image)
        chunks.append(TableChunk(rows=part, first=start, image=image, caption=caption, folder=folder))
    if not chunks:
        raise PowerclipError(f"{folder} has no row")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return Source(
        chunks=chunks,
        fingerprint=digest((path.name for path in files), (stamp(path) for path in files), [image, caption]),
    )


@lru_cache(maxsize=4)
def _load_dataset(folder: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise PowerclipError(
            f"{folder} was saved by Hugging Face's datasets, which is not installed; pip install 'powerclip[datasets]'"
        ) from error
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PowerclipError(f"cannot read the datasets folder {folder}: {error}") from error


@dataclass(frozen=True)
class _DatasetRows:
    """Rows of a datasets folder, their images as they are stored."""

    folder: Path
    start: int
    count: int
    image: str

    def read(self) -> Iterator[Row | str]:
        import datasets

        table = _load_dataset(self.folder)
        if isinstance(table.features[self.image], datasets.Image):
            table = table.cast_column(self.image, datasets.Image(decode=False))
        yield from table.select(range(self.start, self.start + self.count))


def _columns(path: Path, columns: Sequence[str], image: str | None, caption: str | None) -> tuple[str, str]:
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
