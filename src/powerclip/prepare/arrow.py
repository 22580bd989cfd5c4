"""The rows of Parquet files and of folders saved by Hugging Face's datasets, in bounded memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

from powerclip.data.parquet import check_inflation
from powerclip.errors import PowerclipError, needs_extra
from powerclip.files import read_json

BATCH_ROWS = 32
"""Rows of a Parquet file held in memory at once."""

UNREADABLE = "row cannot be read"


def shape_of(path: Path) -> tuple[list[str], int]:
    """Names of the columns and number of rows of a Parquet file, or datasets folder; PowerclipError if it cannot be read."""
    with needs_extra(str(path), "parquet"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        if path.is_dir():
            return _dataset(path).column_names, _dataset(path).num_rows
        file = ParquetFile(path)
        rows, size = file.metadata.num_rows, path.stat().st_size
        if not 0 <= rows <= size:
            raise ValueError(f"it claims {rows} rows in {size} bytes")
        return file.schema_arrow.names, rows
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error


def dataset_parts(folder: Path) -> list[str]:
    """The names of the files that hold the rows of a datasets folder."""
    return [Path(file["filename"]).name for file in read_json(folder / "state.json")["_data_files"]]


@lru_cache(maxsize=4)
def _dataset(folder: Path) -> Any:
    """The table in a datasets folder, which takes no memory until its rows are used."""
    import pyarrow

    maps = (pyarrow.memory_map(str(folder / name)) for name in dataset_parts(folder))
    return pyarrow.concat_tables(pyarrow.ipc.open_stream(file).read_all() for file in maps)


def arrow_rows(path: Path, columns: tuple[str, ...], start: int, end: int) -> Iterator[tuple[Any, ...] | str]:
    """Some cells of each row of a table from one number to another; ``UNREADABLE`` from a damaged page on."""
    from pyarrow import ArrowException

    try:
        for position, batch in _batches(path, columns, start, end):
            for i in range(max(0, start - position), min(len(batch), end - position)):
                start += 1
                try:
                    yield tuple(batch.column(name)[i].as_py() for name in columns)
                except UnicodeDecodeError:
                    yield "text not UTF-8"
                except (ArrowException, ValueError, OverflowError):
                    yield UNREADABLE
    except (ArrowException, OSError, ValueError):
        pass
    yield from repeat(UNREADABLE, end - start)


def _batches(path: Path, columns: tuple[str, ...], start: int, end: int) -> Iterator[tuple[int, Any]]:
    """The batches of a table that hold some rows, each with the number of its first row."""
    from pyarrow.parquet import ParquetFile

    names = list(dict.fromkeys(columns))
    if path.is_dir():
        position, batches = start, _dataset(path).slice(start, end - start).select(names).to_batches(BATCH_ROWS)
    else:
        file = ParquetFile(path, buffer_size=2**20, pre_buffer=False)  # in pieces, not a column as one
        ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
        groups = range(bisect_right(ends, start), bisect_left(ends, end) + 1)
        for group in map(file.metadata.row_group, groups):
            check_inflation(group, names)
        position = ends[groups[0] - 1] if groups[0] else 0
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=names)
    for batch in batches:
        yield position, batch
        position += len(batch)
