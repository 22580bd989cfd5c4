"""Tables of images and captions: CSV, TSV and JSONL files, Parquet files, and folders saved by Hugging Face's datasets."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain, islice, repeat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from powerclip.config import PrepareConfig
from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.errors import BadSampleError, PowerclipError, did_you_mean
from powerclip.prepare.pairs import (
    Chunk,
    Item,
    Pair,
    Source,
    bad,
    digest,
    make_key,
    make_pair,
    read_image,
    source_of,
    stamp,
)  # fmt: skip

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

IMAGE_COLUMNS = (
    "path", "image", "filepath", "file", "filename", "image_path", "img", "file_name", "jpg", "png", "url", "image_url"
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "text", "title", "description", "caption_text", "captions", "txt")

MAX_LINE = 2**24
"""A longer line of a text file, in characters, is read as several."""

MAX_CELL = 2**20
"""A cell of a CSV or TSV file has at most this many characters: an unclosed quote cannot take more."""

PROBED = 100
"""The columns of a JSONL file are the keys of its first lines, this many."""

PARQUET_ROWS = 32
"""Rows of a Parquet file held in memory at once."""

PARQUET_BUFFER_BYTES = 2**20
"""A column of a Parquet file is read in pieces of this size, instead of as one."""

UNREADABLE = "row cannot be read"

Row = tuple[Any, Any] | str
"""Image and caption as a table holds them; or why the row is not usable."""


def table_items(rows: Callable[[], Iterable[Row]], first: int, folder: Path) -> Iterator[Item]:
    """The pairs of some rows.

    Args:
        rows: reads them.
        first: number of the first row in the table.
        folder: relative paths start here.
    """
    for i, row in enumerate(rows(), start=first):
        if isinstance(row, str):
            yield bad(f"row {i + 1}", row)
            continue
        path = row[0].get("path") if isinstance(row[0], Mapping) else row[0]
        name = path if isinstance(path, str) else ""
        place = f"row {i + 1} ({name[:200]})" if name else f"row {i + 1}"
        yield Item(name=place, load=partial(load_row, make_key(i, name), *row, folder=folder))


def load_row(key: str, image: Any, caption: Any, *, folder: Path) -> Pair:
    """The pair of a row.

    Args:
        key: of the sample.
        image: a path, a file:// URL, the image's bytes, or a mapping with "bytes" or "path".
        caption: a text, or several, of which the first is used.
        folder: relative paths start here.

    Raises:
        BadSampleError: it cannot be used.
    """
    if isinstance(image, Mapping):  # as Hugging Face stores images
        image = image.get("bytes") or image.get("path")
    if isinstance(caption, list | tuple):
        caption = caption[0] if caption else None
    if caption is None or not isinstance(caption, str | bytes):
        raise BadSampleError("empty caption" if caption is None else "caption is not text")
    if isinstance(image, str) and image:
        image = read_image(_find_image(image, folder))
    if not isinstance(image, bytes) or not image:
        raise BadSampleError("no image")
    if len(image) > MAX_MEMBER_BYTES:
        raise BadSampleError("file too large")
    return make_pair(key, image, caption)


def _find_image(cell: str, folder: Path) -> Path:
    if not re.match("[A-Za-z][A-Za-z0-9+.-]*://", cell):
        return folder / cell
    try:
        url = urlsplit(cell)
    except ValueError as error:
        raise BadSampleError("malformed URL") from error
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        return Path(unquote(url.path, errors="surrogateescape"))
    raise BadSampleError("image is a URL (download the images first, for example with img2dataset)")


def find_columns(path: Path, columns: Sequence[str], config: PrepareConfig) -> tuple[str, str]:
    """The columns of images and of captions: those given, or those with well-known names.

    Raises:
        PowerclipError: the table has no such columns, or several.
    """
    return (
        _column(path, columns, config.image_column, IMAGE_COLUMNS, "image-column"),
        _column(path, columns, config.caption_column, CAPTION_COLUMNS, "caption-column"),
    )


def _column(path: Path, columns: Sequence[str], given: str | None, known: tuple[str, ...], option: str) -> str:
    seen = "columns: " + ", ".join(column[:40] for column in columns[:40])
    if given is not None:
        matches = [name for name in columns if name == given]
        if not matches:
            raise PowerclipError(f"{path} has no column {given!r}; {did_you_mean(given, columns, otherwise=seen)}")
    else:
        candidates = ([name for name in columns if name.strip().lower() == word] for word in known)
        matches = next(filter(None, candidates), [])
        if not matches:
            raise PowerclipError(
                f"{path} has no column named {', '.join(known[:4])} or the like; name it with --{option} ({seen})"
            )
    if len(matches) > 1:
        raise PowerclipError(
            f"{path} has {len(matches)} columns {' and '.join(map(repr, matches))}; rename one, or choose another with --{option}"
        )
    return matches[0]


def open_text(path: Path, config: PrepareConfig) -> Source:
    """The pairs of a CSV, TSV or JSONL file; relative paths start at its folder.

    The file is read twice, once here to count its rows and once for the chunks, which carry the rows that they need.

    Raises:
        PowerclipError: it cannot be read, has no row, or its columns cannot be determined.
    """
    try:
        columns, rows = _text_rows(path)
        count = sum(1 for _ in rows)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, csv.Error) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error
    if not count:
        raise PowerclipError(f"{path} has no row")
    names = find_columns(path, columns, config)
    step = config.samples_per_shard

    def chunks() -> Iterator[Chunk]:
        rows = (row if isinstance(row, str) else (row.get(names[0]), row.get(names[1])) for row in _text_rows(path)[1])
        for first in range(0, count, step):
            yield partial(table_items, partial(iter, tuple(islice(rows, step))), first, path.parent)

    return Source(chunks=chunks, count=-(-count // step), fingerprint=digest([content, *names]))


def _text_rows(path: Path) -> tuple[list[str], Iterator[Mapping[str, Any] | str]]:
    """The columns of a text file, and its rows; for a row that cannot be read, the reason."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is UTF-16; save it as UTF-8")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = (_json_row(line) for line in _read_lines(path) if line.strip())
        first = list(islice(rows, PROBED))
        keys = dict.fromkeys(key for row in first if not isinstance(row, str) for key in row)
        if first and not keys:
            raise ValueError(f"none of its first {len(first)} lines is a JSON object")
        return list(keys), chain(first, rows)
    cells = separated_rows(Lines(_read_lines(path)), "," if suffix == ".csv" else "\t")
    header = next(cells, [])
    if isinstance(header, str):
        raise ValueError(f"its first line should name the columns, but: {header}")
    if len(header) == 1 and any(separator in header[0] for separator in "\t;,|"):
        raise ValueError(f"its first line is one column, {header[0][:80]!r}; CSV is separated by commas, TSV by tabs")
    return header, (_named(row, header) for row in cells)


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a file; bytes that are not UTF-8 become surrogates."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from iter(partial(file.readline, MAX_LINE), "")


class Lines:
    """Lines that can be read again: those since ``mark`` was last emptied."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = iter(lines)
        self.mark: list[str] = []
        self.again: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.again.pop() if self.again else next(self.lines)
        self.mark.append(line)
        return line


def separated_rows(lines: Lines, separator: str) -> Iterator[list[str] | str]:
    """The cells of each row of a CSV or TSV file; for a row that cannot be read, the reason.

    If the quotes of a row do not match, its first line alone is affected: in a CSV it is skipped, and in a TSV, where
    captions often hold bare quotes, it is split at its tabs. Reading continues at the next line.
    """
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    width = 0
    while True:
        lines.mark.clear()
        try:
            cells = next(reader, None)
            # In a TSV, a quote that spans several complete rows is not a quoted cell.
            matched = separator == "," or len(lines.mark) < 2 or "".join(lines.mark).count(separator) < width
        except csv.Error:
            cells, matched = [], False
        if cells is None:
            return
        row: list[str] | str = cells
        if not matched:
            first = lines.mark[0]
            lines.again += reversed(lines.mark[1:])
            if len(first) > MAX_CELL:
                row = "line too long"
            else:
                row = "quotes do not match" if separator == "," else first.rstrip("\r\n").split(separator)
        if any(cell.strip() for cell in row) or len(row) > 1:
            width = width or len(row)
            yield row


def _named(cells: list[str] | str, header: Sequence[str]) -> Mapping[str, Any] | str:
    if isinstance(cells, str):
        return cells
    if len(cells) > len(header):
        return "more fields than columns (quote captions that hold the separator)"
    return dict(zip(header, cells, strict=False))


def _json_row(line: str) -> Mapping[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "line is not JSON"
    return row if isinstance(row, dict) else "line is not a JSON object"


def open_parquet(paths: Sequence[Path], config: PrepareConfig, *, ignored: Mapping[str, int] | None = None) -> Source:
    """The pairs of the Parquet files of a folder, one after the other.

    Raises:
        PowerclipError: pyarrow is not installed, a file cannot be read, or its columns cannot be determined.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise PowerclipError(
            "Parquet tables need pyarrow, which is not installed; pip install 'powerclip[parquet]'"
        ) from error
    parts, names = [], ("", "")
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            columns, rows, size = file.schema_arrow.names, file.metadata.num_rows, path.stat().st_size
        except (ArrowException, OSError, ValueError) as error:
            raise PowerclipError(f"cannot read the table {path}: {error}") from error
        if not 0 <= rows <= size:
            raise PowerclipError(f"cannot read the table {path}: it claims {rows} rows in {size} bytes")
        names = find_columns(path, columns, config)
        parts.append((partial(_parquet_rows, path, names), rows))
    fingerprint = digest((path.name for path in paths), (stamp(path) for path in paths), names)
    return _source(paths[0], parts, config, fingerprint=fingerprint, ignored=ignored)


Part = tuple[Callable[[int, int], Iterable[Row]], int]
"""Reads the rows of a file from one number to another; and the number of its rows."""


def _source(
    path: Path,
    parts: Sequence[Part],
    config: PrepareConfig,
    *,
    fingerprint: str,
    ignored: Mapping[str, int] | None = None,
) -> Source:
    """A source whose chunks read their own rows."""
    chunks: list[Chunk] = []
    first, step = 0, config.samples_per_shard
    for read, rows in parts:
        for start in range(0, rows, step):
            part = partial(read, start, min(start + step, rows))
            chunks.append(partial(table_items, part, first + start, path if path.is_dir() else path.parent))
        first += rows
    if not chunks:
        raise PowerclipError(f"{path} has no row")
    return source_of(chunks, fingerprint=fingerprint, ignored=ignored)


def _parquet_rows(path: Path, columns: tuple[str, str], start: int, end: int) -> Iterator[Row]:
    """The rows of a Parquet file from one number to another; those from a damaged page on cannot be read."""
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
        ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
        groups = [g for g, stop in enumerate(ends) if stop > start and (g == 0 or ends[g - 1] < end)]
        position = ends[groups[0] - 1] if groups and groups[0] else 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups, columns=list(columns)):
            for i in range(max(0, start - position), min(len(batch), end - position)):
                start += 1
                yield _parquet_row(batch, i, columns)
            position += len(batch)
    except (ArrowException, OSError, ValueError):
        pass
    yield from repeat(UNREADABLE, end - start)


def _parquet_row(batch: Any, i: int, columns: tuple[str, str]) -> Row:
    from pyarrow import ArrowException

    try:
        return batch.column(columns[0])[i].as_py(), batch.column(columns[1])[i].as_py()
    except UnicodeDecodeError:
        return "text not UTF-8"
    except (ArrowException, ValueError, OverflowError):
        return UNREADABLE


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by Hugging Face's ``save_to_disk``."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def open_dataset(folder: Path, config: PrepareConfig) -> Source:
    """The pairs of a folder written by Hugging Face's ``save_to_disk``.

    Raises:
        PowerclipError: datasets is not installed, or the folder holds several splits or other columns.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if is_dataset(path))
        raise PowerclipError(
            f"{folder} holds the splits {', '.join(splits)}; name one: {folder / (splits or ['?'])[0]}"
        )
    table = _load_dataset(folder)
    names = find_columns(folder, table.column_names, config)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    fingerprint = digest((path.name for path in files), (stamp(path) for path in files), names)
    return _source(folder, [(partial(_dataset_rows, folder, names), len(table))], config, fingerprint=fingerprint)


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


def _dataset_rows(folder: Path, columns: tuple[str, str], start: int, end: int) -> Iterator[Row]:
    """The rows of a datasets folder from one number to another, their images still encoded."""
    import datasets

    table = _load_dataset(folder).select_columns(list(dict.fromkeys(columns)))
    if isinstance(table.features[columns[0]], datasets.Image):
        table = table.cast_column(columns[0], datasets.Image(decode=False))
    while start < end:
        try:
            for row in table.select(range(start, end)):
                start += 1
                yield row[columns[0]], row[columns[1]]
        except Exception:  # datasets' decoders raise many kinds
            start += 1
            yield UNREADABLE
