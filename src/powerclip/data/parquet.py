"""Parquet files that others have made, read in as much memory as their size on disk explains."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.errors import BadSampleError

MAX_INFLATION = 100
"""A row group that is larger than an image may be, and this many times its file, is not read: pages are decompressed as
a whole. Images do not compress."""


def open_parquet(path: Path) -> Any:
    """pyarrow's ``ParquetFile``, which reads columns in pieces; OSError or ArrowException if it is not one."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, buffer_size=2**20, pre_buffer=False)


def read_batches(path: Path, file: Any, groups: Sequence[int], names: Sequence[str]) -> Iterator[Any]:
    """Batches of one row: a value that is stored once for many cells is held once.

    ValueError if a row group is larger than the file at ``path`` can explain. Not by column: pyarrow ends the process
    where the metadata of one are damaged.
    """
    for group in groups:
        if (size := file.metadata.row_group(group).total_byte_size) > explained_bytes(path):
            raise ValueError(f"row group {group} inflates to {size} bytes")
    yield from file.iter_batches(batch_size=1, row_groups=groups, columns=names, use_threads=False)


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
    if types.is_list(kind) or types.is_large_list(kind):
        return size_of(column.flatten())
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
        return compute.sum(lengths).as_py() or 0
    return int(column.nbytes)


def cell_of(column: Any, row: int) -> Any:
    """A cell of a pyarrow array as a Python value; BadSampleError if it is larger than an image may be."""
    if size_of(column.slice(row, 1)) > MAX_MEMBER_BYTES:
        raise BadSampleError("cell too large")
    return column[row].as_py()
