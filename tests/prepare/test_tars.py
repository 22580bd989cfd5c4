"""Tars from anywhere: what is damaged or hostile in them costs itself, is counted, and is read in bounded memory."""

import contextlib
import io
import json
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from functools import partial

import pytest
from rich.console import Console
from torchvision.transforms import v2

from powerclip.data.dataset import transform_with_regions
from powerclip.data.images import decode_image
from powerclip.data.loader import open_data
from powerclip.data.sample import FORM, Sample
from powerclip.data.shards import BrokenShardError, index_shard, read_shards, stream_shard
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.phrases import load_parser
from powerclip.prepare.annotate import Counts, annotated
from powerclip.prepare.check import check
from powerclip.prepare.pairs import Item
from powerclip.regions import RegionAnnotation
from tests.support.images import one_colour
from tests.support.loaders import epoch_of, loader_of
from tests.support.memory import more_bytes
from tests.support.sources import FULL, WHOLE, captions, pairs, picture, prepared, write_raw
from tests.support.tars import header, npy, padded, pax, signed, write_tar

LARGE = 2**60
CUT = "tar damaged or truncated (its rest is lost)"
BLOCKS = {
    "pax records of 2^60 bytes": (header(kind=tarfile.XHDTYPE, size=LARGE), CUT),
    "a long name of 2^60 bytes": (header(kind=tarfile.GNUTYPE_LONGNAME, size=LARGE), CUT),
    "a long name of a negative size": (header(kind=tarfile.GNUTYPE_LONGNAME, size=-1024), CUT),
    "pax records of 2 MiB": (header(kind=tarfile.XHDTYPE, size=2**21) + b"\0" * 2**21 + header(), CUT),
    "a chain of pax headers": (header(kind=tarfile.XHDTYPE) * 3000 + header(), CUT),
    "a chain of long names": ((header(kind=tarfile.GNUTYPE_LONGNAME, size=3) + padded(b"ab")) * 1000 + header(), CUT),
    "a file of 2^60 bytes": (header(size=LARGE), CUT),
    "a file of a negative size": (header(size=-(2**20)), CUT),
    "a file that pax gives 2^60 bytes": (pax(size=LARGE) + header(size=5) + padded(b"hello"), CUT),
    "a file that leads back to itself": (pax(size=-1536) + header(size=5) + padded(b"hello"), CUT),
    "a map of holes without end": (
        signed(header(kind=tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + b"\0" * 29) + (b"1" * 504 + b"\1" + b"1" * 7) * 4000,
        CUT,
    ),
    "pax's map of holes without end": (
        pax(**{"GNU.sparse.major": 1, "GNU.sparse.minor": 0}) + header(size=512)
        + padded(b"9" * 9 + b"\n" + b"1\n" * 10**6), CUT,
    ),
    "a file with holes": (
        pax(**{"GNU.sparse.major": 1, "GNU.sparse.minor": 0, "GNU.sparse.name": "s.jpg", "GNU.sparse.realsize": 10**5})
        + header(size=512) + padded(b"1\n0\n5\n"), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_header_costs_more_than_itself(kind, tmp_path, monkeypatch):
    blocks, reason = BLOCKS[kind]
    monkeypatch.setattr("powerclip.data.shards.MAX_HEADER_BYTES", 2**17)
    write_raw(tmp_path / "in.tar", blocks)
    tracemalloc.start()
    with pytest.raises(BrokenShardError) if reason else contextlib.nullcontext():
        assert sum(1 for _ in stream_shard(tmp_path / "in.tar")) == 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**17  # a number of the two bytes "1\n" takes some thirty, and lists grow by copying
    report = prepared(tmp_path / "in.tar", tmp_path / "out")
    assert report["samples"] == 20
    assert report["skipped"] == ({reason: 1} if reason else {})


def test_records_for_all_members_do_not_pile_up(tmp_path):
    records = b"".join(
        header("g", tarfile.XGLTYPE, 512) + padded(f"512 k{i}=".encode().ljust(511, b"v") + b"\n") + header(f"{i}.txt")
        for i in range(5000)
    )
    write_raw(tmp_path / "in.tar", records)
    tracemalloc.start()
    assert sum(1 for _ in stream_shard(tmp_path / "in.tar")) == 5020
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_a_sample_of_a_million_files_is_cut(tmp_path):
    write_raw(tmp_path / "in.tar", b"".join(header(f"x.{i}") for i in range(3000)), number=1)
    for entries in (list(stream_shard(tmp_path / "in.tar")), index_shard(tmp_path / "in.tar")):
        assert [len(entry.members) for entry in entries] == [2, 64]


@pytest.mark.parametrize("name", ["x.{}", "{}.txt", "{}/x.txt"])
def test_names_of_a_megabyte_are_counted_and_not_kept(name, tmp_path):
    write_raw(tmp_path / "in.tar", b"".join(pax(path=name.format(f"{i}" + "a" * 10**6)) + header() for i in range(40)))
    for read in (index_shard, lambda path, ignored: list(stream_shard(path, ignored))):
        ignored = Counter()
        tracemalloc.start()
        assert len(read(tmp_path / "in.tar", ignored)) == 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert ignored == {"name too long": 40}
        assert peak < 12 * 10**6  # what tarfile makes of one; all are 40 megabytes
    report = prepared(tmp_path / "in.tar", tmp_path / "out")
    assert (report["samples"], report["ignored"]) == (20, {"name too long": 40})


ANNOTATIONS = {
    "malformed regions.json": [
        ("regions.json", b'{"a":1}'), ("regions.json", b'{"masks":5}'), ("regions.json", b"[]"),
        ("regions.json", json.dumps({**WHOLE, "masks": [{"rle": "!!"}]}).encode()),
        ("regions.json", json.dumps({**WHOLE, "masks": [FULL] * 20 + [{"rle": "\\4"}]}).encode()),
        ("regions.json", b'{"height": 9, "width": 12, "masks": [[]]}'),
        ("regions.json", b'{"height": 1e999, "width": 12, "masks": []}'),
    ],
    "regions and image differ in size": [
        ("regions.json", json.dumps({**WHOLE, "height": 12, "width": 9}).encode()),
    ],
    "phrases reach beyond the caption": [("phrases.json", b'{"leaves":[[0,999]],"phrases":[]}')],
    "phrases cross": [
        ("phrases.json", json.dumps({
            "leaves": [[0, 1], [2, 3], [3, 5]],
            "phrases": [{"label": "NP", "leaves": [0, 1]}, {"label": "NP", "leaves": [1, 2]}],
        }).encode())
    ],
    "malformed phrases.json": [
        ("phrases.json", b"[1]"), ("phrases.json", b'{"leaves":[[0,Infinity]],"phrases":[]}'),
        ("phrases.json", b'{"leaves":' + b"[" * 500 + b"]" * 500 + b"}"),
    ],
    f"malformed regions.json{FORM}": [
        ("regions.json", json.dumps({**WHOLE, "masks": [{"rle": {"size": [9, 12], "counts": "\\3"}}]}).encode()),
        ("regions.json", b'[{"segmentation": [[0, 0, 0, 9, 12, 9]]}]'),
    ],
    "file too large": [("json", b" " * (2**24 + 1))],
    "caption too large": [("txt", b"a " * 2**19 + b"b")],
}  # fmt: skip


@pytest.mark.parametrize("reason", ANNOTATIONS)
def test_annotations_that_are_not_valid_are_counted(reason, tmp_path):
    for i, (extension, data) in enumerate(ANNOTATIONS[reason]):
        files = {"jpg": picture(), "txt": b"a dog", extension: data}
        write_tar(tmp_path / f"{i}.tar", [*pairs(), *((f"k.{name}", content) for name, content in files.items())])
        report = prepared(tmp_path / f"{i}.tar", tmp_path / f"{i}")
        assert report["skipped"] == {reason: 1}, data[:100]
        assert report["examples"][reason] == [f"{i}.tar/k"]
        assert len(list(read_shards(tmp_path / f"{i}"))) == report["samples"] == 20


METADATA = [b'{"a":' * 300 + b"0" + b"}" * 300, b'{"a":' + b"1" * 5000 + b"}", b"[1]", b"null", b"", b'{"a": "\xe9"}']


def test_metadata_that_are_not_valid_cost_no_pair(tmp_path):
    files = [(f"bad{i}.{e}", x) for i, data in enumerate(METADATA) for e, x in (*pairs(1), ("json", data))]
    write_tar(tmp_path / "in.tar", [(name.replace(".ok00", ""), data) for name, data in files])
    report = prepared(tmp_path / "in.tar", tmp_path / "out")
    assert (report["skipped"], report["remarks"]) == ({}, {"malformed json left out": len(METADATA)})
    assert [sample.metadata for sample in read_shards(tmp_path / "out")] == [{}] * len(METADATA)


LARGE_JSON = b'{"a":[' + b"[]," * (5 * 2**20) + b"0]}"
"""15 megabytes; as values, they take twenty times that."""


def prepared_without(folder):
    return prepared(folder, folder.with_name(f"{folder.name} out"))["skipped"]


def trained_without(folder):
    loader = loader_of(folder, batch_size=10, regions=1, max_bad_share=0.9)
    assert len(loader.look()) > 5
    assert sum(map(len, epoch_of(loader))) == 20
    return loader.bad


@pytest.mark.parametrize("extension", ["json", "phrases.json", "regions.json", "captions.json", "njson"])
@pytest.mark.parametrize("use", [prepared_without, trained_without])
def test_json_of_15_megabytes_costs_its_sample(use, extension, tmp_path):
    regions = json.dumps({**WHOLE, "masks": [FULL]}).encode()
    valid = [("k.jpg", picture()), ("k.regions.json", regions), ("k.txt", b"a dog"), (f"k.{extension}", LARGE_JSON)]
    for folder, files in (
        ("plain", valid[:3]),
        ("large", [file for file in valid if file != (f"k.{extension}", regions)]),
    ):
        write_tar(tmp_path / folder / "0.tar", [*pairs(19), *files])
    use(tmp_path / "plain")  # what is loaded once is no part of the figures
    cpu_s, more = [], []
    for folder in ("plain", "large"):
        start = time.process_time()
        with more_bytes() as grown:
            skipped = use(tmp_path / folder)
        cpu_s.append(time.process_time() - start)
        more += grown
    assert skipped == ({} if (use, extension) == (trained_without, "json") else {"file too large": 1})
    assert more[1] < more[0] + 4 * 2**20
    assert cpu_s[1] < 10 * cpu_s[0]  # that of 20 images of 12 x 9 pixels; parsing takes a hundred times that


def test_metadata_as_values_are_held_of_few_samples_at_once():
    """A quarter of a megabyte of JSON takes 6 megabytes as values, and 20 samples would take 120."""
    metadata = b'{"a":[' + b"{}," * 87_000 + b"0]}"
    files = {"jpg": picture(), "txt": b"a dog", "json": metadata}
    loaded = []

    def load(i):
        sample = Sample.from_members(f"{i}", files)
        loaded.append(i)
        return sample, None

    items = (Item(f"{i}", partial(load, i)) for i in range(20))
    with more_bytes() as more:
        for i, _ in enumerate(annotated(items, None, None, Counts(), batch_bytes=2**24)):
            assert len(loaded) - i <= 3
    assert len(loaded) == 20
    assert more[0] < 48 * 2**20


def test_what_the_reader_takes_the_writer_writes(tmp_path):
    deep = b'{"a":' * 99 + b"0" + b"}" * 99
    write_tar(tmp_path / "in.tar", [
        ("a.jpg", picture()), ("a.txt", b"a dog"), ("a.json", b'{"half": "\\ud800", "no": NaN}'),
        ("b.jpg", picture()), ("b.txt", b"a dog"), ("b.json", deep),
    ])  # fmt: skip
    assert prepared(tmp_path / "in.tar", tmp_path / "out")["skipped"] == {}
    first, second = read_shards(tmp_path / "out")
    assert first.metadata["half"] == "\ud800"
    assert first.metadata["no"] is None
    assert json.dumps(second.metadata).encode().replace(b" ", b"") == deep


def test_only_the_files_that_matter_are_read(tmp_path, monkeypatch):
    """A sample's other files may be of any size."""
    import os

    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: read.append(size) or pread(file, size, place))
    others = [("k.mp4", b"\0" * 7777), ("k.png", b"\0" * 7777), ("k.sam.npy", b"\0" * 7777)]
    write_tar(tmp_path / "in.tar", [("k.jpg", picture()), ("k.txt", b"a dog"), *others])
    assert prepared(tmp_path / "in.tar", tmp_path / "out")["samples"] == 1
    assert read
    assert 7777 not in read


def test_a_tars_caption_is_cleaned_and_the_original_kept_with_its_metadata(tmp_path):
    members = [("k.jpg", picture()), ("k.txt", b"\xef\xbb\xbfSalt &amp;  pepper\n"), ("k.json", b'{"url": "x"}')]
    write_tar(tmp_path / "in.tar", members)
    prepared(tmp_path / "in.tar", tmp_path / "out")
    (sample,) = read_shards(tmp_path / "out")
    assert sample.caption == "Salt & pepper"
    assert sample.metadata == {"caption_original": "\ufeffSalt &amp;  pepper\n", "url": "x"}


def test_what_macos_leaves_behind_is_skipped(tmp_path):
    members = [(f"{folder}{name}", data) for name, data in pairs() for folder in ("", "._")]
    write_tar(tmp_path / "in.tar", members)
    text = io.StringIO()
    report = prepared(tmp_path / "in.tar", tmp_path / "out", text=text)
    assert (report["samples"], report["skipped"], report["ignored"]) == (20, {}, {"hidden": 40})
    assert "other files in the source: 40 hidden" in text.getvalue()
    assert prepared(tmp_path / "in.tar", tmp_path / "out")["ignored"] == {"hidden": 40}  # nothing is made again
    assert len(index_shard(tmp_path / "in.tar")) == 20


def test_every_file_of_a_tar_is_used_or_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("powerclip.data.shards.MAX_FILES", 5)
    link, folder = tarfile.TarInfo("l.jpg"), tarfile.TarInfo("in")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "a.jpg", tarfile.DIRTYPE
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", [
        folder, ("a.jpg", picture()), ("a.png", picture()), ("a.txt", b"a dog"), ("a.json", b"{}"), ("a.cls", b"1"),
        link, (".DS_Store", b""), ("._a.txt", b"x"),
        ("b.jpg", picture()), ("b.txt", b"first"), ("b.txt", b"second"),
        *((f"c.{i}", b"") for i in range(7)), ("c.jpg", picture()), ("c.txt", b"a dog"),
    ])  # fmt: skip
    (tmp_path / "tars" / "._0.tar").write_bytes(b"x")
    report = prepared(tmp_path / "tars", tmp_path / "out")
    assert report["ignored"] == {
        "hidden": 3, "link or special file": 1, ".png": 1, ".cls": 1, "file beyond 5 of one key": 4,
        ".0": 1, ".1": 1, ".2": 1, ".3": 1, ".4": 1,
    }  # fmt: skip
    assert report["skipped"] == {"key occurs twice in its tar": 1, "no image": 1}
    assert captions(tmp_path / "out") == ["a dog", "first"]


def test_a_check_counts_what_training_does_not_read(tmp_path):
    write_tar(tmp_path / "0.tar", [("._a.jpg", b""), ("a.jpg", picture()), ("a.txt", b"a dog"), ("a.jpg", picture(1))])
    text = io.StringIO()
    result = check(tmp_path, console=Console(file=text, width=200))
    assert result["ignored"] == {"hidden": 1, "second file of a name": 1}
    assert "other files: 1 hidden, 1 second file of a name" in text.getvalue()


def test_a_generated_key_is_never_a_tar_s_own(tmp_path):
    keys = ["00000001+a-b", "a b", "00000003-a-b", "a b.c/d", "00000003+own", "00000005+own"]
    write_tar(
        tmp_path / "0.tar", [(f"{key}.{e}", d) for key in keys for e, d in (("jpg", picture()), ("txt", key.encode()))]
    )
    assert prepared(tmp_path / "0.tar", tmp_path / "out")["samples"] == len(keys)
    made = {sample.key: sample.caption for sample in read_shards(tmp_path / "out")}
    own = ["00000003-a-b", "00000005+own"]  # the latter begins with its own place, as no other sample's does
    assert {key: made.pop(key) for key in own} == dict(zip(own, own, strict=True))
    assert {key.rpartition("-_")[0]: caption for key, caption in made.items()} == {  # without their hashes
        "00000000+00000001-a-b": keys[0], "00000001+a-b": keys[1],
        "00000003+d": keys[3], "00000004+00000003-own": keys[4],
    }  # fmt: skip


def test_files_that_are_apart_are_reported(tmp_path):
    write_tar(tmp_path / "in.tar", sorted(pairs(), key=lambda member: member[0].rpartition(".")[2]))
    with pytest.raises(
        PowerclipError, match="no caption .*the files of a sample must follow one another .tar --sort=name"
    ):
        prepared(tmp_path / "in.tar", tmp_path / "out")


@pytest.mark.parametrize("first", [b"", b"\0" * 10240, b"junk" * 500])
def test_a_first_tar_without_samples_refuses_nothing(first, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(first)
    write_tar(tmp_path / "in" / "1.TAR", pairs(3))
    (tmp_path / "in" / "._1.tar").write_bytes(b"junk")
    report = prepared(tmp_path / "in", tmp_path / "out")
    assert report["samples"] == 3
    assert report["skipped"] == ({} if first.startswith(b"\0") else {CUT: 1})
    (tmp_path / "in" / "1.TAR").unlink()
    with pytest.raises(
        PowerclipError, match="no sample in .*0.tar" if first.startswith(b"\0") else "is truncated or not a tar"
    ):
        prepared(tmp_path / "in", tmp_path / "other")


def test_the_probe_looks_at_the_first_shard_that_holds_a_sample(tmp_path):
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(PowerclipError, match="holds no sample; expected KEY.jpg"):
        open_data(tmp_path)
    write_tar(tmp_path / "1.tar", [("x.jpg", picture())])
    with pytest.raises(PowerclipError, match="no caption under txt in the first 1 samples of .*1.tar"):
        open_data(tmp_path)
    write_tar(tmp_path / "1.tar", pairs(1))
    open_data(tmp_path)


def meta(i, **values):
    return json.dumps(
        {"url": "http://x/y.jpg", "key": f"{i:09d}", "status": "success", "exif": "{}", **values}
    ).encode()


def test_the_caption_inside_the_json_is_found(tmp_path):
    """By img2dataset's own key, where its option save_caption_in_metadata is all that was set."""
    members = [m for i in range(5) for m in ((f"{i}.jpg", picture(i)), (f"{i}.json", meta(i, caption=f"dog {i}")))]
    write_tar(tmp_path / "in.tar", members)
    assert prepared(tmp_path / "in.tar", tmp_path / "out")["samples"] == 5
    assert [sample.caption for sample in read_shards(tmp_path / "out")] == [f"dog {i}" for i in range(5)]


def test_each_sample_s_caption_is_looked_for(tmp_path):
    inside = [("b.jpg", picture()), ("b.json", meta(1, title="x", text="b"))]
    for name, members in (
        ("text first", [*pairs(1), *inside]),
        ("json first", [*inside, ("c.jpg", picture()), *pairs(1)]),
    ):
        write_tar(tmp_path / f"{name}.tar", members)
        report = prepared(tmp_path / f"{name}.tar", tmp_path / name)
        assert sorted(captions(tmp_path / name)) == ["a dog", "b"]
        assert report["skipped"] == ({"no caption": 1} if name == "json first" else {})
    report = prepared(tmp_path / "text first.tar", tmp_path / "out", caption_key="txt")
    assert (captions(tmp_path / "out"), report["skipped"]) == (["a dog"], {"no caption": 1})


@pytest.mark.parametrize("key", ["alt", ".ALT"])
def test_the_caption_of_another_extension(key, tmp_path):
    tree = b'{"leaves":[[0,1],[2,5]],"phrases":[{"label":"NP","leaves":[0,1]}]}'
    write_tar(tmp_path / "in.tar", [
        ("a.jpg", picture()), ("a.txt", b"a dog"), ("a.alt", b"a cat on a chair"), ("a.phrases.json", tree),
        ("b.jpg", picture()), ("b.txt", b"a dog"),
        ("c.jpg", picture()), ("c.txt", b"a dog"), ("c.alt", b"a dog"), ("c.phrases.json", tree),
    ])  # fmt: skip
    assert prepared(tmp_path / "in.tar", tmp_path / "out", caption_key=key)["skipped"] == {"no caption": 1}
    other, same = read_shards(tmp_path / "out")
    assert (other.caption, other.tree) == ("a cat on a chair", None)  # the phrases are the other caption's
    assert (same.caption, same.tree.leaves) == ("a dog", ((0, 1), (2, 5)))


@pytest.mark.parametrize("given", [(), ("JSON:caption",), ("Json:CAPTION",), ("json:caption",)])
def test_keys_of_captions_may_be_written_in_any_case(given, tmp_path):
    write_tar(tmp_path / "in.tar", [("a.jpg", picture()), ("a.json", b'{"CAPTION": "a dog"}')])
    prepared(tmp_path / "in.tar", tmp_path / "out", caption_key=given)
    assert captions(tmp_path / "out") == ["a dog"]


def test_a_key_as_it_is_written_comes_before_another_case(tmp_path):
    both = {"alt": {"Text": "a cat", "TEXT": "a fox"}, "ALT": {"text": "a dog"}, "Caption": "x", "CAPTION": "y"}
    write_tar(tmp_path / "in.tar", [("a.jpg", picture()), ("a.json", json.dumps(both).encode())])
    for key, caption in {"json:ALT.Text": "a dog", "json:alt.TEXT": "a fox"}.items():
        prepared(tmp_path / "in.tar", tmp_path / caption, caption_key=(key,))
        assert captions(tmp_path / caption) == [caption]
    for key in ("json:alt.text", "json:caption"):  # two, neither of which is meant more
        report = prepared(tmp_path / "in.tar", tmp_path / key[5:], caption_key=(key,), max_bad_share=1.0)
        assert report["skipped"] == {"no caption": 1}


def test_keys_of_a_tar_of_the_folder_at_hand_are_those_of_its_files(tmp_path):
    """tar -cf x.tar . puts ./ before every name."""
    write_tar(tmp_path / "in.tar", [("./a/0001.jpg", picture()), ("./a/0001.txt", b"a dog")])
    prepared(tmp_path / "in.tar", tmp_path / "out")
    assert [sample.key for sample in read_shards(tmp_path / "out")] == ["a/0001"]


def test_what_follows_the_end_mark_is_not_lost_in_silence(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", picture()), (f"{name}.txt", b"a dog")])
    a, b = ((tmp_path / f"{name}.tar").read_bytes() for name in ("a", "b"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(a + b)
    report = prepared(tmp_path / "in", tmp_path / "out", max_bad_share=1.0)
    assert (report["samples"], report["skipped"], report["examples"]) == (1, {CUT: 1}, {CUT: ["0.tar"]})
    with pytest.raises(
        PowerclipError, match="data after the end mark at byte .*: cat does not join tars after 1 samples"
    ):
        index_shard(tmp_path / "in" / "0.tar")
    (tmp_path / "in" / "0.tar").write_bytes(a + b"\0" * 2**21)  # more than is read at once
    assert [place.key for place in index_shard(tmp_path / "in" / "0.tar")] == ["a"]


def test_names_with_several_dots_say_where_a_key_ends(tmp_path):
    write_tar(tmp_path / "in.tar", [("photo.v1.jpg", picture()), ("photo.v1.txt", b"a dog")])
    with pytest.raises(
        PowerclipError, match=r"no image under .* v1\.jpg, v1\.txt; a key ends at the first dot of a name"
    ):
        prepared(tmp_path / "in.tar", tmp_path / "out")


def test_a_shard_that_is_cut_after_it_was_indexed(tmp_path):
    write_tar(tmp_path / "in.tar", [("a.jpg", picture()), ("a.txt", b"a blue square")])
    (entry,) = index_shard(tmp_path / "in.tar")
    offset, size = entry.members["txt"]
    (tmp_path / "in.tar").write_bytes((tmp_path / "in.tar").read_bytes()[: offset + size - 1])
    with pytest.raises(BadSampleError, match="shard truncated"):
        entry.read()


def test_names_that_a_source_makes_up_do_not_pile_up(tmp_path):
    tree = '{"leaves": [[0, 1]], "phrases": [], "parser": "%d"}'
    extensions = (("jpg", picture()), ("txt", b"a dog"))
    files = [(f"{i}.{e}", d) for i in range(200) for e, d in (*extensions, ("phrases.json", (tree % i).encode()))]
    write_tar(tmp_path / "in.tar", files)
    parsers = prepared(tmp_path / "in.tar", tmp_path / "out")["parser"]
    assert sum(parsers.values()) == 200
    assert len(parsers) <= 51
    assert parsers["others"] >= 150


MEASURED = """
import resource, sys
from powerclip.cli import main
from powerclip.prepare import job
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
main(["prepare", *sys.argv[1:], "--parser", "none", "--max-bad-share", "0.9"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
CAPTURED = {"capture_output": True, "text": True}


@pytest.mark.slow
def test_more_tiny_members_than_are_looked_at_are_prepared_in_bounded_memory(tmp_path):
    """124 MB of headers: files of no sample, samples beyond the first 200,000, and files of one name."""
    with (tmp_path / "in.tar").open("wb") as file:
        write_raw(tmp_path / "start.tar", b"")
        file.write((tmp_path / "start.tar").read_bytes()[: -len(b"\0" * 1024)])
        block, same = bytearray(header("0000000.txt")), header("same.txt")
        plain = sum(block[:148]) + sum(block[156:]) + 8 * 32 - sum(block[:7])
        for i in range(121_000):
            digits = b"%07d" % i
            block[:7] = digits
            block[148:155] = b"%06o\0" % (plain + sum(digits))
            file.write(block + same)
        file.write(b"\0" * 1024)
    child = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "in.tar", tmp_path / "out"], **CAPTURED)
    assert "242000 of 242020 samples cannot be used: " in child.stderr, child.stderr
    assert ", 42020 beyond the first 200000 samples of its tar" in child.stderr
    assert int(child.stdout) < 200 * 1024  # KiB; some hundred bytes a key
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["samples"] == 20
    assert sum(report["skipped"].values()) == 242_000


def test_annotations_that_are_valid_stay(tmp_path):
    regions = json.dumps({**WHOLE, "masks": [FULL] * 20, "proposer": "sam:x"}).encode()
    write_tar(tmp_path / "in.tar", [("k.jpg", picture()), ("k.txt", b"a dog"), ("k.regions.json", regions)])
    assert prepared(tmp_path / "in.tar", tmp_path / "out")["regions_per_image"] == 20
    (sample,) = read_shards(tmp_path / "out")
    assert sample.regions == RegionAnnotation.from_json(json.loads(regions))


PUBLISHED = "A xylophonist's T-shirt, and 2019 dogs"
"""Tokens: start-of-text, a, xy, lo, ph, onist, 's, t, -, shirt, a comma, and, 2, 0, 1, 9, dogs, end-of-text."""
BOXES = [[0, 1, 14, 15], list(range(196)), [], [195], [100, 101]]


def published(
    size=(640, 480), boxes=BOXES, phrases=((1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9), (12, 13, 14, 15, 16))
):
    """The files of a sample in the form of the shards published with the paper."""
    return [
        ("k.jpg", one_colour("red", "JPEG", size=size)), ("k.txt", PUBLISHED.encode()),
        ("k.samlens.npy", npy([len(box) for box in boxes])), ("k.samcat.npy", npy([i for box in boxes for i in box])),
        (
            "k.njson",
            json.dumps([[len(phrase) for phrase in phrases], [i for phrase in phrases for i in phrase]]).encode(),
        ),
    ]  # fmt: skip


def test_published_phrases_become_phrases_over_words(tmp_path):
    write_tar(tmp_path / "in.tar", published())
    text = io.StringIO()
    report = prepared(tmp_path / "in.tar", tmp_path / "out", text=text)
    (sample,) = read_shards(tmp_path / "out")
    words = [PUBLISHED[a:b] for a, b in sample.tree.leaves]
    assert words == ["A", "xylophonist", "s", "T-shirt", "and", "2019", "dogs"]
    assert [(p.first, p.last) for p in sample.tree.phrases] == [(0, 3), (0, 1), (5, 6)]
    assert (report["parser"], report["proposer"]) == ({"njson": 1}, {"samlens": 1})
    assert "kept from the source: phrases of njson (1), regions of samlens (1)" in text.getvalue()
    assert report["ignored"] == {}
    ours = prepared(tmp_path / "in.tar", tmp_path / "other", parser="spacy", replace_annotations=True)
    assert set(ours["parser"]) == {load_parser("spacy").name}
    assert (ours["proposer"], ours["ignored"]) == ({"none": 1}, {".samlens.npy": 1, ".samcat.npy": 1, ".njson": 1})


@pytest.mark.parametrize("size", [(224, 224), (37, 500), (640, 480), (60, 47)])
def test_published_regions_are_the_same_patches_once_converted(size, tmp_path):
    """What training sees of them on the squeezed image, 14 x 14 patches of 16 pixels."""
    write_tar(tmp_path / "in.tar", published(size))
    prepared(tmp_path / "in.tar", tmp_path / "out")
    seen = []
    for folder in (tmp_path / "in.tar", tmp_path / "out"):
        (sample,) = read_shards(folder)
        image = decode_image(sample.image)
        _, regions = transform_with_regions(sample, image, v2.Resize((224, 224)), count=9, grid=(14, 14))
        seen.append(sorted(map(tuple, regions[regions.any(dim=1)].tolist())))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4
    assert sample.regions.masks().shape == (4, size[1], size[0])


def test_published_regions_that_do_not_fit_cost_their_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("powerclip.prepare.tars.MAX_MASK_PIXELS", 3 * 640 * 480)
    write_tar(tmp_path / "in.tar", [*published(), *pairs(1)])
    report = prepared(tmp_path / "in.tar", tmp_path / "out")
    assert report["skipped"] == {"too many regions for the size of the image": 1}
