"""The rows of Parquet files and of folders saved by Hugging Face's datasets, in bounded memory."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, islice, pairwise, repeat
from pathlib import Path
from typing import Any

from powerclip.data.parquet import cell_of, open_parquet, read_batches
from powerclip.errors import BadSampleError, PowerclipError, needs_extra
from powerclip.files import read_json

BATCH_ROWS = 32
"""Rows of a datasets folder read at once."""

UNREADABLE = "row cannot be read"


def shape_of(path: Path) -> tuple[list[str], int]:
    """Names of the columns and number of rows of a Parquet file, or datasets folder;
    PowerclipError if it cannot be read."""
    with needs_extra(str(path), "parquet"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        if path.is_dir():
            return _dataset(path).column_names, _dataset(path).num_rows
        file = ParquetFile(path)
        rows, size = file.metadata.num_rows, path.stat().st_size
        if not 0 <= rows <= size or rows != _ends(file)[-1]:
            raise ValueError(f"it claims {rows} rows in {size} bytes, and {_ends(file)[-1]} in its row groups")
        return file.schema_arrow.names, rows
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error


def dataset_parts(folder: Path) -> list[str]:
    """The names of the files that hold the rows of a datasets folder; ValueError if it takes some of these only."""
    state = read_json(folder / "state.json")
    names = [Path(file["filename"]).name for file in state["_data_files"]]
    if state.get("_indices_data_files"):
        raise ValueError("it selects rows of its files by indices; save it again after dataset.flatten_indices()")
    return names


@lru_cache(maxsize=4)
def _dataset(folder: Path) -> Any:
    """The table in a datasets folder, which takes no memory until its rows are used."""
    import pyarrow

    def read(path: Path) -> Any:
        file = pyarrow.memory_map(str(path))
        if any(map(_is_compressed, pyarrow.ipc.MessageReader.open_stream(file))):
            raise ValueError(f"{path.name} is compressed; write it with save_to_disk of datasets")
        file.seek(0)
        return pyarrow.ipc.open_stream(file).read_all()

    return pyarrow.concat_tables(read(folder / name) for name in dataset_parts(folder))


def _is_compressed(message: Any) -> bool:
    """Whether a message's buffers are, which would be decompressed at once, whatever size they claim.

    The numbers of fields are those of Message.fbs in Apache Arrow's format, a FlatBuffer.
    """
    data = memoryview(message.metadata)

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], "little", signed=True)

    def field(table: int, i: int) -> int:
        """Where a field of a table is; 0 if it is not there."""
        fields, place = table - number(table, 4), 4 + 2 * i
        offset = number(fields + place, 2) if place < number(fields, 2) else 0
        return offset and table + offset

    def table(place: int) -> int:
        return place + number(place, 4)

    if message.type not in ("record batch", "dictionary"):
        return False
    batch = table(field(table(0), 2))
    return field(table(field(batch, 1)) if message.type == "dictionary" else batch, 3) > 0


def _ends(file: Any) -> list[int]:
    """The number of rows before each row group of a Parquet file, and that of all."""
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    return list(accumulate((group.num_rows for group in groups), initial=0))


def arrow_rows(path: Path, columns: tuple[str, ...], start: int, end: int) -> Iterator[tuple[Any, ...] | str]:
    """Some cells of each row of a table from one number to another; ``UNREADABLE`` from a damaged page on."""
    from pyarrow import ArrowException

    try:
        for position, batch in _batches(path, columns, start, end):
            for i in range(max(0, start - position), min(len(batch), end - position)):
                start += 1
                try:
                    yield tuple(cell_of(batch.column(name), i) for name in columns)
                except UnicodeDecodeError:
                    yield "text not UTF-8"
                except BadSampleError as error:
                    yield str(error)
                except (ArrowException, ValueError, OverflowError):
                    yield UNREADABLE
    except (ArrowException, OSError, ValueError):
        pass
    yield from repeat(UNREADABLE, end - start)


def _batches(path: Path, columns: tuple[str, ...], start: int, end: int) -> Iterator[tuple[int, Any]]:
    """The batches of a table that hold some rows, each with the number of its first row."""
    names = list(dict.fromkeys(columns))
    if path.is_dir():
        position = start
        for batch in _dataset(path).slice(start, end - start).select(names).to_batches(BATCH_ROWS):
            batch.validate(full=True)  # a damaged offset would be followed to anywhere
            yield position, batch
            position += len(batch)
        return
    with open_parquet(path) as file:
        ends = _ends(file)
        groups = [i for i, (first, last) in enumerate(pairwise(ends)) if first < end and start < last]
        first = ends[groups[0]] if groups else start
        rows = read_batches(path, file, groups, names)
        yield from islice(enumerate(rows, start=first), end - first)
