"""Parquet files that others have made, read in as much memory as their size on disk explains."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from powerclip.data.limits import MAX_CAPTIONS, MAX_MEMBER_BYTES
from powerclip.data.thrift import INT32, INT64, LIST, STRUCT, Struct, read_struct
from powerclip.errors import BadSampleError

MAX_INFLATION = 100
"""A row group that is larger than an image may be, and this many times its file, is not read: pages are decompressed as
a whole. Images do not compress."""

VALUE_BYTES = 16
"""What a value of a list takes at least: its levels and its offset, in buffers that double."""

ITEM_BYTES = 64
"""What an item of a list takes at least in Python."""

DATA_PAGES = {0: 5, 3: 8}
"""Types of pages that hold values, and the field of the header that describes each."""


def open_parquet(path: Path) -> Any:
    """pyarrow's ``ParquetFile``, which reads columns in pieces; OSError or ArrowException if it is not one.

    A text that is stored once is held once also where the cell of a row refers to it many times.
    """
    from pyarrow.parquet import ParquetFile

    options = {"buffer_size": 2**20, "pre_buffer": False}
    file = ParquetFile(path, **options)
    leaves = map(file.schema.column, range(len(file.schema)))
    lists = [leaf.path for leaf in leaves if leaf.max_repetition_level and leaf.physical_type == "BYTE_ARRAY"]
    return ParquetFile(path, metadata=file.metadata, read_dictionary=lists, **options) if lists else file


def read_batches(path: Path, file: Any, groups: Sequence[int], names: Sequence[str]) -> Iterator[Any]:
    """Batches of one row: a value that is stored once for many cells is held once.

    ValueError if a row group is larger than the file at ``path`` can explain.
    """
    check_pages(path, groups, names)
    yield from file.iter_batches(batch_size=1, row_groups=groups, columns=names, use_threads=False)


def check_pages(path: Path, groups: Sequence[int], names: Sequence[str]) -> None:
    """Check what columns of row groups take when they are decompressed; ValueError if the file cannot explain it.

    It is read from the header of each page, which is what pyarrow allocates by: the metadata at the end of the file may
    say less. Not by pyarrow's metadata of a column either, which end the process where they are damaged. The numbers of
    fields are those of parquet.thrift in Apache's parquet-format.
    """
    try:
        status = path.stat()
        found = _row_groups(path, status.st_size, status.st_mtime_ns)
        with path.open("rb") as file:
            for group in groups:
                chunks = [chunk[3, STRUCT] for chunk in found[group][1, LIST]]
                size = sum(sum(_pages(file, chunk)) for chunk in chunks if chunk[3, LIST][0].decode() in names)
                if size > explained_bytes(path):
                    raise ValueError(f"row group {group} inflates to {size} bytes")
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the headers of its pages cannot be read: {error!r}") from error


@lru_cache(maxsize=1)  # a large file's metadata are read in a second, and the groups one after the other
def _row_groups(path: Path, *_stamp: int) -> list[Struct]:
    with path.open("rb") as file:
        file.seek(-8, 2)
        file.seek(-8 - int.from_bytes(file.read(4), "little"), 2)
        found: list[Struct] = read_struct(file)[4, LIST]
    return found


def _pages(file: BinaryIO, chunk: Struct) -> Iterator[int]:
    """How many bytes each page of a column chunk takes when it is decompressed, or its values do."""
    place, left = min(filter(None, (chunk[9, INT64], chunk.get((11, INT64))))), chunk[5, INT64]
    while left > 0:
        file.seek(place)
        header = read_struct(file)
        kind, inflated, compressed = header[1, INT32], header[2, INT32], header[3, INT32]
        values = header[DATA_PAGES[kind], STRUCT][1, INT32] if kind in DATA_PAGES else 0
        if min(inflated, compressed, values) < 0:
            raise ValueError("a page of a negative size")
        yield max(inflated, VALUE_BYTES * values)
        left, place = left - values, file.tell() + compressed


def read_group(path: Path, file: Any, group: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a row group; ValueError also if they are larger than the file can explain."""
    rows: list[dict[str, Any]] = []
    left = explained_bytes(path)
    for batch in read_batches(path, file, [group], names):
        left -= sum(map(size_of, batch.columns))
        if left < 0:
            raise ValueError(f"row group {group} inflates to more than {explained_bytes(path)} bytes")
        rows += batch.to_pylist()
    return rows


def explained_bytes(path: Path) -> int:
    """The most that a part of a file may take."""
    return max(MAX_MEMBER_BYTES, MAX_INFLATION * path.stat().st_size)


def size_of(column: Any) -> int:
    """Bytes of a pyarrow array where each cell has its value for itself, as Python would hold it."""
    from pyarrow import compute, types

    kind = column.type
    if types.is_struct(kind):
        return sum(map(size_of, column.flatten()))
    if hasattr(column, "flatten"):  # lists of any kind
        values = column.flatten()
        return ITEM_BYTES * len(values) + size_of(values)
    if types.is_union(kind) or types.is_run_end_encoded(kind):
        raise BadSampleError(f"cell of type {kind}")
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
        return compute.sum(lengths).as_py() or 0
    return int(column.nbytes)


def cell_of(column: Any, row: int) -> Any:
    """A cell of a pyarrow array as a Python value.

    BadSampleError if it is larger than an image may be, or has more than ``MAX_CAPTIONS`` entries.
    """
    cell = column.slice(row, 1)
    if hasattr(cell, "value_lengths") and (cell.value_lengths()[0].as_py() or 0) > MAX_CAPTIONS:
        raise BadSampleError(f"list of more than {MAX_CAPTIONS} values")
    if size_of(cell) > MAX_MEMBER_BYTES:
        raise BadSampleError("cell too large")
    return cell[0].as_py()
