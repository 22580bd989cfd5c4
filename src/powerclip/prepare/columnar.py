"""Tables by columns: Parquet, and folders that Hugging Face's datasets saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from powerclip.errors import PowerclipError
from powerclip.prepare.source import Source, digest, stamp
from powerclip.prepare.tables import Row, TableChunk, find_columns

BATCH = 32
"""Rows of a Parquet file held at once."""

BUFFER_BYTES = 2**20
"""Of a Parquet column, which would be read whole otherwise."""

UNREADABLE = "row cannot be read"


def open_parquet(
    paths: Sequence[Path], samples_per_shard: int, *, image_column: str | None, caption_column: str | None
) -> Source:
    """The pairs of Parquet files, one after the other.

    Raises:
        PowerclipError: pyarrow is not installed, a file cannot be read, or its columns cannot be told.
    """
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
            columns, rows, size = file.schema_arrow.names, file.metadata.num_rows, path.stat().st_size
        except (ArrowException, OSError, ValueError) as error:
            raise PowerclipError(f"cannot read the table {path}: {error}") from error
        if not 0 <= rows <= size:
            raise PowerclipError(f"cannot read the table {path}: it claims {rows} rows in {size} bytes")
        names = find_columns(path, columns, image_column, caption_column)
        for start in range(0, rows, samples_per_shard):
            part = _ParquetRows(path, start, min(samples_per_shard, rows - start), names)
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
        yield from islice(chain(self._read(), repeat(UNREADABLE)), self.count)

    def _read(self) -> Iterator[Row | str]:
        from pyarrow import ArrowException, parquet

        try:
            file = parquet.ParquetFile(self.path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (ArrowException, OSError, ValueError):
            return
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            begin, end = max(self.start - first, 0), min(self.start + self.count - first, rows)
            if begin < end:
                yield from islice(chain(self._group(file, group, begin), repeat(UNREADABLE)), end - begin)
            first += rows

    def _group(self, file: Any, group: int, begin: int) -> Iterator[Row | str]:
        """The rows of a row group from one on, up to where it is damaged."""
        from pyarrow import ArrowException

        position = 0
        batches = file.iter_batches(batch_size=BATCH, row_groups=[group], columns=list(self.columns))
        while True:
            try:
                batch = next(batches, None)
            except (ArrowException, OSError, ValueError):
                return
            if batch is None:
                return
            for i in range(max(0, begin - position), len(batch)):
                yield _row(batch, i)
            position += len(batch)


def _row(batch: Any, i: int) -> Row | str:
    from pyarrow import ArrowException

    try:
        return {name: column[i].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError:
        return "text not UTF-8"
    except (ArrowException, ValueError, OverflowError):
        return UNREADABLE


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
    image, caption = find_columns(folder, table.column_names, image_column, caption_column)
    chunks = []
    for start in range(0, len(table), samples_per_shard):
        part = _DatasetRows(folder, start, min(samples_per_shard, len(table) - start), image, caption)
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
    caption: str

    def read(self) -> Iterator[Row | str]:
        import datasets

        table = _load_dataset(self.folder).select_columns(list(dict.fromkeys((self.image, self.caption))))
        if isinstance(table.features[self.image], datasets.Image):
            table = table.cast_column(self.image, datasets.Image(decode=False))
        first, end = self.start, self.start + self.count
        while first < end:
            try:
                for row in table.select(range(first, end)):
                    first += 1
                    yield row
            except Exception:  # datasets' decoders raise many kinds
                first += 1
                yield UNREADABLE
