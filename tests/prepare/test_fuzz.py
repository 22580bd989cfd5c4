"""Whatever the bytes, the readers raise what is documented, and a sample that cannot be used is one that is counted."""

import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from powerclip.config import PrepareConfig
from powerclip.data.shards import index_shard, stream_shard
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare.check import check_shard
from powerclip.prepare.source import open_source
from tests.support.sources import FULL, pairs, picture, prepared, write_raw
from tests.support.tars import damaged, header, padded, pax, signed, write_tar


def read_all(source, **options):
    """Every item of a source: the samples, and the reasons of the others."""
    samples, reasons = [], []
    for chunk in open_source(str(source), PrepareConfig(**options)).chunks:
        for item in chunk():
            try:
                samples.append(item.load()[0])
            except BadSampleError as error:
                reasons.append(str(error))
    return samples, reasons


FIELDS = {
    "name": (0, 100),
    "size": (124, 136),
    "type": (156, 157),
    "link": (157, 257),
    "magic": (257, 265),
    "sparse": (345, 512),
}
NUMBERS = st.one_of(
    st.integers(0, 8**11 - 1).map(lambda n: b"%011o\0" % n),
    st.integers(-(2**63), 2**63 - 1).map(
        lambda n: (b"\xff" if n < 0 else b"\x80") + n.to_bytes(11, "big", signed=True)
    ),
)
TYPES = st.sampled_from([bytes([c]) for c in b"\0000123456789ABDKLMNSVXgx"])


@st.composite
def members(draw):
    """Blocks of a member: a valid header with some fields replaced, records before it, data behind it."""
    block = header(draw(st.sampled_from(["k.jpg", "k.txt", "a/b.c.d", "", "..", "k"])), size=draw(st.integers(0, 1500)))
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=3)):
        first, end = FIELDS[name]
        value = {"size": NUMBERS, "type": TYPES}.get(name, st.binary(max_size=end - first))
        block = block[:first] + draw(value)[: end - first].ljust(end - first, b"\0") + block[end:]
    keys = st.sampled_from(
        ["path", "size", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset"]
    )
    values = st.one_of(st.integers(-(2**64), 2**64).map(str), st.text(max_size=20), st.just("1"), st.just("0"))
    records = draw(st.none() | st.dictionaries(keys, values, max_size=3))
    data = draw(st.binary(max_size=1200) | st.just(b"5\n" * 300))
    return (b"" if records is None else pax(**records)) + signed(block) + padded(data)


@given(st.lists(members(), min_size=1, max_size=4))
def test_no_header_breaks_the_tar_readers(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("tar")
    write_raw(folder / "in.tar", b"".join(found), number=2)
    samples, reasons = read_all(folder / "in.tar")
    assert len(samples) >= 2  # those before
    size = (folder / "in.tar").stat().st_size
    for read in (index_shard, lambda path: list(stream_shard(path))):
        try:
            entries = read(folder / "in.tar")
        except (PowerclipError, ValueError):
            continue
        assert all(0 <= offset <= offset + length <= size for e in entries for offset, length in e.members.values())
    check_shard(folder / "in.tar")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NUMBER = st.integers(-2, 14) | JSON
TREES = st.fixed_dictionaries(
    {
        "leaves": st.lists(st.lists(NUMBER, min_size=2, max_size=2), max_size=4) | JSON,
        "phrases": st.lists(st.fixed_dictionaries({"label": JSON, "leaves": st.lists(NUMBER, max_size=3)}), max_size=3)
        | JSON,
    },
    optional={"parser": JSON},
)
MASK = st.just(FULL) | st.fixed_dictionaries({"rle": st.text(max_size=6) | JSON}, optional={"score": NUMBER}) | JSON
REGIONS = st.fixed_dictionaries(
    {"height": st.just(9) | NUMBER, "width": st.just(12) | NUMBER, "masks": st.lists(MASK, max_size=10) | JSON},
    optional={"proposer": JSON},
)


@given(st.none() | TREES | JSON, st.none() | REGIONS | JSON, st.none() | JSON)
def test_no_annotations_break_the_job(tmp_path_factory, tree, regions, metadata):
    folder = tmp_path_factory.mktemp("annotations")
    files = {"phrases.json": tree, "regions.json": regions, "json": metadata}
    written = [(f"k.{e}", json.dumps(value).encode()) for e, value in files.items() if value is not None]
    write_tar(folder / "in.tar", [*pairs(1), ("k.jpg", picture()), ("k.txt", b"a dog on a mat"), *written])
    report = prepared(folder / "in.tar", folder / "out")
    assert report["samples"] + sum(report["skipped"].values()) == 2
    result = check_shard(folder / "out" / "shard-000000.tar")
    assert not result["counts"].skipped
    assert len(result["measures"]) == report["samples"]


@given(st.data())
def test_no_bytes_break_the_readers_of_parquet(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    rows = pa.table({"image": [picture(i) for i in range(5)], "caption": [f"dog {i}" for i in range(5)]})
    compression, dictionary = data.draw(st.sampled_from(["none", "snappy", "gzip", "zstd"])), data.draw(st.booleans())
    parquet.write_table(rows, path, row_group_size=2, compression=compression, use_dictionary=dictionary)
    raw = path.read_bytes()
    # The images are most of the file; what describes them comes after.
    foot = data.draw(st.booleans()) * (len(raw) - 8 - int.from_bytes(raw[-8:-4], "little"))
    path.write_bytes(raw[:foot] + damaged(raw[foot:], data.draw))
    try:
        samples, reasons = read_all(path, samples_per_shard=3)
    except PowerclipError:
        return
    assert len(samples) + len(reasons) <= path.stat().st_size


@given(st.data())
def test_no_bytes_break_the_readers_of_datasets_folders(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("dataset")
    rows = pa.table({"image": [picture(i) for i in range(3)], "caption": [["a dog", "b"], None, ["c"]]})
    with pa.ipc.new_stream(folder / "data.arrow", rows.schema) as stream:
        stream.write_table(rows)
    (folder / "data.arrow").write_bytes(damaged((folder / "data.arrow").read_bytes(), data.draw))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    try:
        samples, reasons = read_all(folder)
    except PowerclipError:
        return
    assert len(samples) + len(reasons) == 3
