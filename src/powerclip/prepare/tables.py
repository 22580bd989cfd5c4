"""Tables of images and captions: CSV, TSV, JSONL and Parquet files, and folders saved by Hugging Face's datasets."""

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from os.path import isfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from powerclip.config import PrepareConfig
from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.data.sample import CAPTION_EXTENSION
from powerclip.errors import BadSampleError, PowerclipError, UnreadSampleError, did_you_mean
from powerclip.prepare.arrow import UNREADABLE, arrow_rows, dataset_parts, shape_of
from powerclip.prepare.pairs import (
    Cell,
    Chunk,
    Item,
    Pair,
    Source,
    UnusedFileError,
    bad,
    count_kinds,
    digest,
    in_chunks,
    make_key,
    pair_of,
    read_captions,
    read_file,
    require_read,
    stamp,
)
from powerclip.prepare.text_rows import MAX_VALUES, SEPARATORS, Row, is_small, text_rows

TABLES = (*SEPARATORS, ".jsonl", ".parquet")

IMAGE_COLUMNS = (
    "path", "image", "filepath", "file", "filename", "image_path", "img", "file_name", "image_bytes", "jpg", "jpeg",
    "png", "webp", "url", "image_url",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "text", "title", "description", "caption_text", "captions", "txt")

STATUS = "status"
"""The column in which img2dataset notes what became of a row's URL."""
NOT_DOWNLOADED = "row of a failed download"


def table_items(
    rows: Iterable[Row], first: int, folder: Path, *, captions: Sequence[str], lines: bool
) -> Iterator[Item]:
    """The pairs of some rows; the first of them has the number ``first``, and relative paths start at the folder.

    ``captions`` are the sources of the cells behind the image; with ``lines`` each line in them is a caption.
    """
    for i, row in enumerate(rows, start=first):
        if isinstance(row, str):
            kinds = {UNREADABLE: UnreadSampleError, NOT_DOWNLOADED: UnusedFileError}
            yield bad(f"row {i + 1}", row, kinds.get(row, BadSampleError))
            continue
        path = row[0].get("path") if isinstance(row[0], Mapping) else row[0]
        name = path if isinstance(path, str) else ""
        place = f"row {i + 1} ({name[:200]})" if name else f"row {i + 1}"
        cells = tuple(zip(captions, row[1:], strict=True))
        yield Item(place, partial(load_row, make_key(i, name), row[0], *cells, folder=folder, lines=lines))


def load_row(key: str, image: Any, *cells: Cell, folder: Path, lines: bool = False) -> Pair:
    """The pair of a row; BadSampleError if it cannot be used. Relative paths start at the folder.

    The image is a path, a file:// URL, bytes, or a mapping with "bytes" or "path"; the captions are those of
    ``read_captions``.
    """
    if isinstance(image, Mapping):  # as Hugging Face stores images
        image = image.get("bytes") or image.get("path")
    captions = read_captions(cells, lines=lines)
    if isinstance(image, str) and image:
        path = _find_image(image, folder)
        before = str(path).rpartition("#")[0]
        there = isfile(before)  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        hint = " (it is there without # and what follows; remove that)" * there
        image = read_file(path, MAX_MEMBER_BYTES, missing=f"image file missing{hint}")
    if not isinstance(image, bytes) or not image:
        raise BadSampleError("no image")
    return pair_of(key, image, captions)


def where(table: Path) -> list[str]:
    """Where the relative paths in a table or datasets folder start: an equal one elsewhere is of other images."""
    return [str((table if table.is_dir() else table.parent).resolve())]


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


def find_columns(
    path: Path, columns: Sequence[str], config: PrepareConfig, first: str | None, known: tuple[str, ...], option: str
) -> tuple[int, ...]:
    """The places of a column, ``first`` or one of ``known`` names, and of those of captions, given or well-known.

    A given column is a name, or a number from 1 where no column has that name; one given twice counts once.
    PowerclipError if one is not there, or the table has two of that name.
    """
    hint = "; if that is a row already, add --no-header" * (config.header and path.suffix.lower() in SEPARATORS)
    captions = config.caption_column or (None,)
    return (
        _column(path, columns, first, known, option, hint),
        *dict.fromkeys(_column(path, columns, name, CAPTION_COLUMNS, "caption-column", hint) for name in captions),
    )


def sources_of(names: Sequence[str]) -> Sequence[str]:
    """The sources of captions: the names of columns or keys, if there are several."""
    return names if len(names) > 1 else (CAPTION_EXTENSION,)


def _column(
    path: Path, columns: Sequence[str], given: str | None, known: tuple[str, ...], option: str, hint: str
) -> int:
    names = columns if given is not None else [name.strip().lower() for name in columns]
    places = ([i for i, name in enumerate(names) if name == word] for word in ([given] if given is not None else known))
    numbers = [str(i + 1) for i in range(len(columns))]
    matches = next(filter(None, places), [numbers.index(given)] if given in numbers else [])
    if len(matches) == 1:
        return matches[0]
    seen = "columns: " + ", ".join(column[:40] for column in columns[:40])
    if matches:
        same = " and ".join(repr(columns[i]) for i in matches)
        number = " or ".join(numbers[i] for i in matches)
        why = f"has {len(matches)} columns {same}; rename one, or choose with --{option} and a number ({number})"
    elif given is not None:
        why = f"has no column {given!r}; {did_you_mean(given, columns, otherwise=seen)}"
    else:
        why = f"has no column named {', '.join(known[:4])} or the like; name it with --{option} ({seen}){hint}"
    raise PowerclipError(f"{path} {why}")


def open_text(path: Path, config: PrepareConfig) -> Source:
    """The pairs of a CSV, TSV or JSONL file; relative paths start at its folder.

    The file is read twice, once here to count its rows and once for the chunks, which carry the rows that they need.
    PowerclipError if it cannot be read, has no row, or its columns cannot be determined.
    """
    require_read(config, path, "image_column", *table_options(path))
    columns, read = read_table(path, config)
    try:
        count = sum(1 for _ in read(()))
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, csv.Error) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error
    if not count:
        raise PowerclipError(f"{path} has no row")
    places = find_columns(path, columns, config, config.image_column, IMAGE_COLUMNS, "image-column")
    sources = sources_of([columns[i] for i in places[1:]])
    items = partial(table_items, folder=path.parent, captions=sources, lines=config.caption_lines)
    return Source(
        chunks=in_chunks(items, islice(read(places), count), config.samples_per_shard),
        count=-(-count // config.samples_per_shard),
        fingerprint=digest([content, *where(path), f"{config.header}", *(f"{i} {columns[i]}" for i in places)]),
    )


def table_options(path: Path) -> tuple[str, ...]:
    """The options of ``READ_FROM`` that are read with a table's captions."""
    return ("caption_column", "caption_lines", *["header"] * (path.suffix.lower() in SEPARATORS))


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder, by name, without hidden ones."""
    files = (path for path in folder.iterdir() if path.suffix.lower() == ".parquet")
    return sorted(path for path in files if not path.name.startswith("."))


def table_files(path: Path) -> list[Path]:
    """A table, or the Parquet files of a folder; PowerclipError if it is neither."""
    files = parquet_files(path) if path.is_dir() else [path]
    if not files or not files[0].is_file() or files[0].suffix.lower() not in TABLES:
        raise PowerclipError(f"{path} is not a table; give a {', '.join(TABLES)} file, or a folder of Parquet files")
    return files


def read_table(path: Path, config: PrepareConfig) -> tuple[list[str], Callable[[Sequence[int]], Iterator[Row]]]:
    """The columns of a table, and a function that reads some of them, by place, row by row, each time from the start.

    PowerclipError if the table cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        columns, count = shape_of(path)
        return columns, lambda places: arrow_rows(path, tuple(columns[i] for i in places), 0, count)
    try:
        columns, _ = text_rows(path, header=config.header)
    except (OSError, ValueError, csv.Error) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error

    def rows(places: Sequence[int]) -> Iterator[Row]:
        for row in text_rows(path, header=config.header)[1]:
            cells = row if isinstance(row, str) else tuple(row[i] for i in places)
            yield cells if is_small(cells) else f"more than {MAX_VALUES} values in a row"

    return columns, rows


DATASET_FILES = ("state.json", "dataset_info.json")
"""What a datasets folder says of itself."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by Hugging Face's ``save_to_disk``."""
    state = (folder / "state.json").is_file() and any(folder.glob("*.arrow"))  # others have files of that name, too
    return state or (folder / "dataset_dict.json").is_file()


def open_dataset(folder: Path, config: PrepareConfig) -> Source:
    """The pairs of a folder from ``save_to_disk``; PowerclipError as ``open_arrow``, or if it holds several splits."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if is_dataset(path))
        first = folder / (splits or ["?"])[0]
        raise PowerclipError(f"{folder} holds the splits {', '.join(splits)}; name one: {first}")
    source = open_arrow([folder], config)
    used = {folder / name for name in (*DATASET_FILES, *dataset_parts(folder))}
    return replace(source, ignored=count_kinds(set(folder.iterdir()) - used))


def open_arrow(paths: Sequence[Path], config: PrepareConfig, *, ignored: Mapping[str, int] | None = None) -> Source:
    """The pairs of Parquet files, or of a datasets folder, one after the other; relative paths start at their folder.

    PowerclipError if pyarrow is missing, a file cannot be read, there is no row, or the columns cannot be determined.
    """
    require_read(config, paths[0], "image_column", *table_options(paths[0]))
    chunks: list[Chunk] = []
    first = 0
    names: tuple[str, ...] = ()
    for path in paths:
        columns, rows = shape_of(path)
        places = find_columns(path, columns, config, config.image_column, IMAGE_COLUMNS, "image-column")
        names = tuple(columns[i] for i in places)
        if twice := [name for name in names if columns.count(name) > 1]:
            raise PowerclipError(f"{path} has {columns.count(twice[0])} columns {twice[0]!r}; rename one")
        for start in range(0, rows, config.samples_per_shard):
            end = min(start + config.samples_per_shard, rows)
            items = partial(_arrow_items, path, names, start, end, first + start, lines=config.caption_lines)
            chunks.append(partial(items, notes_status=columns.count(STATUS) == 1))
        first += rows
    if not chunks:
        raise PowerclipError(f"{paths[0]} has no row")
    files = sorted(filter(Path.is_file, paths[0].iterdir())) if paths[0].is_dir() else paths
    fingerprint = digest((file.name for file in files), map(stamp, files), names, where(paths[0]))
    return Source(chunks=chunks, count=len(chunks), fingerprint=fingerprint, ignored=ignored or {})


def _arrow_items(
    path: Path, columns: tuple[str, ...], start: int, end: int, first: int, *, lines: bool, notes_status: bool
) -> Iterator[Item]:
    rows = arrow_rows(path, (*columns, STATUS) if notes_status else columns, start, end)
    if notes_status:
        rows = (_without_status(row) for row in rows)
    folder = path if path.is_dir() else path.parent
    return table_items(rows, first, folder, captions=sources_of(columns[1:]), lines=lines)


def _without_status(row: Row) -> Row:
    """A row without its last cell, the ``STATUS``; ``NOT_DOWNLOADED`` if img2dataset has no image, and says why."""
    if isinstance(row, str):
        return row
    return NOT_DOWNLOADED if row[0] is None and str(row[-1]).startswith("failed_to_") else row[:-1]
