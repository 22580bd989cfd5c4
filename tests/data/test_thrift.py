"""Structs that pyarrow wrote, and what is none."""

import io

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from powerclip.data.thrift import INT32, INT64, LIST, STRUCT, read_struct


def test_the_metadata_of_a_parquet_file_are_read_as_pyarrow_reads_them(tmp_path):
    table = pa.table({"a": list(range(300)), "b": [["x", None]] * 300, "c": [0.5, None, float("nan")] * 100})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=7, compression="zstd")
    raw, expected = (tmp_path / "t.parquet").read_bytes(), parquet.ParquetFile(tmp_path / "t.parquet").metadata
    found = read_struct(io.BytesIO(raw[-8 - int.from_bytes(raw[-8:-4], "little") :]))
    assert (found[1, INT32], found[3, INT64], len(found[4, LIST])) == (2, 300, 43)  # the version comes first
    for i, group in enumerate(found[4, LIST]):
        assert group[3, INT64] == expected.row_group(i).num_rows
        for j, chunk in enumerate(group[1, LIST]):
            meta, column = chunk[3, STRUCT], expected.row_group(i).column(j)
            assert b".".join(meta[3, LIST]).decode() == column.path_in_schema
            sizes = (column.num_values, column.total_uncompressed_size, column.total_compressed_size)
            assert tuple(meta[number, INT64] for number in (5, 6, 7)) == sizes
            assert meta[9, INT64] == column.data_page_offset


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x15", b"\x15\x02\x05\x02\x02\x00", b"\x15" + b"\xff" * 20, b"\x18\xff\xff\xff\xff\x0f\x00",
        b"\x19\xfc\xff\xff\xff\xff\x0f\x00", b"\x1c" * 10_000, b"\x1b\x00\x00",
    ],
    ids=[
        "nothing", "no value", "a field twice", "too large", "bytes that are not there",
        "a list of 4e9", "depth", "a map",
    ],
)  # fmt: skip
def test_what_is_no_struct_is_an_error(data):
    with pytest.raises((ValueError, LookupError, RecursionError)):
        read_struct(io.BytesIO(data))


@given(st.binary(max_size=60))
def test_no_bytes_are_another_error(data):
    try:
        fields = read_struct(io.BytesIO(data))
    except (ValueError, LookupError):
        return
    assert len({number for number, _ in fields}) == len(fields)
