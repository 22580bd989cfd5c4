"""Parquet files take the memory that their size explains, and no damaged byte ends the process."""

import os

import pyarrow as pa
import pytest
from pyarrow import ArrowException, parquet

from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.data.parquet import cell_of, open_parquet, read_batches, read_group, size_of
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.evaluate.datasets.images import TableImage, open_picture
from powerclip.evaluate.datasets.release import Release
from powerclip.prepare.arrow import arrow_rows
from tests.support.arrow_memory import peak_bytes

ROWS = 101
VALUE = os.urandom(2**20)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """One value of a megabyte that is stored once for all rows, alone and in a struct."""
    path = tmp_path_factory.mktemp("repeated") / "t.parquet"
    table = pa.table({"image": [{"bytes": VALUE, "path": None}] * ROWS, "caption": [VALUE] * ROWS})
    parquet.write_table(table, path, dictionary_pagesize_limit=2**21)
    assert path.stat().st_size < 3 * len(VALUE)
    return path


def test_a_value_that_is_stored_once_is_held_once(repeated):
    with peak_bytes() as peak:
        for row in arrow_rows(repeated, ("image", "caption"), 0, ROWS):
            assert (row[0]["bytes"], row[1]) == (VALUE, VALUE)
    assert peak[0] < 16 * len(VALUE)


def test_a_row_group_is_held_as_far_as_its_file_explains_it(repeated, tmp_path, monkeypatch):
    monkeypatch.setattr("powerclip.data.parquet.MAX_INFLATION", 10)
    monkeypatch.setattr("powerclip.data.parquet.MAX_MEMBER_BYTES", 0)
    message = rf"t.parquet cannot be read \(row group 0 inflates to more than {10 * repeated.stat().st_size} bytes"
    with peak_bytes() as peak:
        with pytest.raises(PowerclipError, match=message):
            open_picture(TableImage(repeated, 0, 3, "image"))
        with pytest.raises(PowerclipError, match=message):
            Release(repeated.parent).parquet(["caption"], ["image"])
    assert peak[0] < 16 * len(VALUE)


@pytest.mark.parametrize("rows_per_group", [7, 100])
def test_rows_of_several_groups_and_encodings_are_read_in_order(rows_per_group, tmp_path):
    rows = [{"image": {"bytes": os.urandom(50), "path": None}, "captions": [f"{i}", "b"]} for i in range(40)]
    options = {"row_group_size": rows_per_group, "dictionary_pagesize_limit": 256, "write_batch_size": 3}
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", **options)
    expected = [tuple(row.values()) for row in rows]
    assert list(arrow_rows(tmp_path / "t.parquet", ("image", "captions"), 0, 40)) == expected
    assert list(arrow_rows(tmp_path / "t.parquet", ("image", "captions"), 5, 23)) == expected[5:23]
    with open_parquet(tmp_path / "t.parquet") as file:
        groups = [read_group(tmp_path / "t.parquet", file, i, ["captions"]) for i in range(file.num_row_groups)]
    assert [row["captions"][0] for group in groups for row in group] == [f"{i}" for i in range(40)]


def test_a_cell_counts_with_all_that_it_holds():
    texts = pa.array(["ab", "c", "ab", "ab"]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 4], pa.int32()), texts)
    assert [size_of(lists.slice(row, 1)) for row in range(3)] == [2 * 64 + 3, 0, 2 * 64 + 4]
    assert cell_of(lists, 2) == ["ab", "ab"]
    with pytest.raises(BadSampleError, match="^cell too large$"):
        cell_of(pa.array([b"a", bytes(MAX_MEMBER_BYTES)]), 1)


def varint(number, width=0):
    """A positive number as Thrift writes it, in at least so many bytes."""
    groups = [2 * number >> shift & 127 for shift in range(0, 70, 7)]
    used = max(width, 1 + max(i for i, group in enumerate(groups) if group))
    return bytes(group | 128 for group in groups[: used - 1]) + bytes(groups[used - 1 : used])


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_page_that_is_larger_than_the_metadata_say_is_not_decompressed(compression, dictionary, tmp_path):
    """The file has some 100 kB, a page 100 MB, and the metadata speak of 1000 bytes."""
    path, image = tmp_path / "t.parquet", pa.array([bytes(10**8)], pa.binary())
    options = {"compression": compression, "use_dictionary": dictionary, "write_statistics": False}
    parquet.write_table(pa.table({"image": image, "caption": ["a dog"]}), path, **options)
    raw = path.read_bytes()
    foot = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    meta = parquet.ParquetFile(path).metadata.row_group(0)
    for size in (meta.total_byte_size, meta.column(0).total_uncompressed_size):
        old = varint(size)
        assert old in raw[foot:]
        raw = raw[:foot] + raw[foot:].replace(old, varint(1000, len(old)))
    path.write_bytes(raw)
    assert parquet.ParquetFile(path).metadata.row_group(0).total_byte_size == 1000
    with peak_bytes() as peak:
        assert list(arrow_rows(path, ("image", "caption"), 0, 1)) == ["row cannot be read"]
        with pytest.raises(
            PowerclipError, match="t.parquet cannot be read .row group 0 inflates to 1000[0-9]{5} bytes"
        ):
            open_picture(TableImage(path, 0, 0, "image"))
        assert list(arrow_rows(path, ("caption",), 0, 1)) == [("a dog",)]
    assert peak[0] < 2**20


def test_no_byte_of_the_metadata_ends_the_process(tmp_path):
    """pyarrow raises in C++, where nothing catches it, if the metadata of a column that are asked for are damaged."""
    rows = pa.table({"image": [b"x" * 20] * 5, "caption": [[f"dog {i}", "b"] for i in range(5)]})
    parquet.write_table(rows, tmp_path / "t.parquet", row_group_size=2)
    valid = (tmp_path / "t.parquet").read_bytes()
    start = len(valid) - 8 - int.from_bytes(valid[-8:-4], "little")
    read = 0
    for place in range(start, len(valid)):
        damaged = bytearray(valid)
        damaged[place] ^= 64
        (tmp_path / "t.parquet").write_bytes(damaged)
        try:
            with open_parquet(tmp_path / "t.parquet") as file:
                names = ["image", "caption"]
                read += len(list(read_batches(tmp_path / "t.parquet", file, range(file.num_row_groups), names))) == 5
        except (ArrowException, OSError, ValueError):
            continue
    assert 0 < read < len(valid) - start
