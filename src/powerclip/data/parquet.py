"""What may be read of Parquet files that others have made."""

from collections.abc import Collection
from typing import Any

from powerclip.data.limits import MAX_MEMBER_BYTES

MAX_INFLATION = 100
"""A column of a row group that is larger than an image may be, and this many times its size in the file, is not read:
its pages are decompressed as a whole. Images do not compress."""


def check_inflation(group: Any, names: Collection[str]) -> None:
    """ValueError if a named column of a row group, given by pyarrow's metadata, is larger than its file can explain."""
    for column in map(group.column, range(group.num_columns)):
        limit = max(MAX_MEMBER_BYTES, MAX_INFLATION * column.total_compressed_size)
        if column.path_in_schema.split(".")[0] in names and column.total_uncompressed_size > limit:
            raise ValueError(f"column {column.path_in_schema} inflates to {column.total_uncompressed_size} bytes")
