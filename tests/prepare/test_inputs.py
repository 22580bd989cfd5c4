"""Every kind of source gives the same samples; tars and tables that are damaged or hostile cost what is bad in them."""

import io
import json
import tarfile

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from powerclip.config import PrepareConfig
from powerclip.data.shards import BrokenShardError, index_shard, read_shards, stream_shard
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare import prepare
from powerclip.prepare.source import open_source
from tests.support.images import one_colour
from tests.support.sources import picture, prepared
from tests.support.tars import write_tar

CAPTIONS = [f"a dog number {i} on a red chair" for i in range(7)]


def img2dataset(folder, caption="txt"):
    folder.mkdir()
    for shard in range(2):
        members = []
        for i in range(shard * 4, min(7, shard * 4 + 4)):
            key = f"{shard:05d}{i:04d}"
            meta = {"url": "http://x/y.jpg", "status": "success", "width": 12, "exif": "{}"}
            members.append((f"{key}.jpg", picture(i)))
            if caption == "txt":
                members.append((f"{key}.txt", CAPTIONS[i].encode()))
            else:
                meta["info"] = {"alt": [CAPTIONS[i], "other"]}
            members.append((f"{key}.json", json.dumps(meta).encode()))
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def hf(folder):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(7)], "caption": CAPTIONS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


def table(folder, kind):
    (folder / "i").mkdir(parents=True)
    for i in range(7):
        (folder / "i" / f"{i}.jpg").write_bytes(picture(i))
    path = folder / f"t.{kind}"
    rows = [{"path": f"i/{i}.jpg", "caption": CAPTIONS[i]} for i in range(7)]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


SOURCES = {
    "img2dataset": lambda f: (img2dataset(f), {}),
    "img2dataset, caption inside json": lambda f: (img2dataset(f, "json"), {"caption_key": "json:info.alt"}),
    "datasets": lambda f: (hf(f), {}),
    "parquet": lambda f: (table(f, "parquet"), {}),
    "folder of parquet": lambda f: (table(f, "parquet").parent, {}),
    "jsonl": lambda f: (table(f, "jsonl"), {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_all_pairs_in_order(kind, tmp_path):
    source, options = SOURCES[kind](tmp_path / "in")
    report = prepare(source, tmp_path / "out", PrepareConfig(samples_per_shard=3, parser="none", **options))
    samples = list(read_shards(tmp_path / "out"))
    assert report["skipped"] == {}
    assert [sample.caption for sample in samples] == CAPTIONS
    assert [sample.image for sample in samples] == [picture(i) for i in range(7)]
    assert len({sample.key for sample in samples}) == 7
    assert report["source_hash"] == open_source(str(source), PrepareConfig(samples_per_shard=3, **options)).fingerprint
    assert {"powerclip", "spacy", "torch"} <= set(report["versions"])


def test_metadata_of_a_tar_stays(tmp_path):
    prepare(img2dataset(tmp_path / "in"), tmp_path / "out", PrepareConfig(parser="none"))
    assert all(sample.metadata["status"] == "success" for sample in read_shards(tmp_path / "out"))


def test_captions_that_are_not_found_say_what_there_is(tmp_path):
    source = img2dataset(tmp_path / "in", "json")
    with pytest.raises(
        PowerclipError,
        match=r"no caption under txt.*files seen.*jpg, json; keys of the json: exif, info.*--caption-key",
    ):
        prepare(source, tmp_path / "out")
    with pytest.raises(PowerclipError, match="no caption under json:title"):
        prepare(source, tmp_path / "out", PrepareConfig(caption_key="json:title"))
    write_tar(tmp_path / "text.tar", [("a.txt", b"x")])
    with pytest.raises(PowerclipError, match="no image under jpg.*files seen in .*text.tar: txt"):
        prepare(tmp_path / "text.tar", tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_several_splits_are_named(tmp_path):
    part = datasets.Dataset.from_dict({"path": ["x"], "caption": ["y"]})
    datasets.DatasetDict({"train": part, "val": part}).save_to_disk(str(tmp_path / "in"))
    with pytest.raises(PowerclipError, match="holds the splits train, val; name one: .*train"):
        prepare(tmp_path / "in", tmp_path / "out")
    (hub := tmp_path / "hub").mkdir()
    for split in ("train", "val"):
        part.to_parquet(hub / f"{split}-00000-of-00001.parquet")
    with pytest.raises(PowerclipError, match="holds the splits train, val; put the files of one into a folder"):
        prepare(hub, tmp_path / "out")
    (above := tmp_path / "above").mkdir()
    hub.rename(above / "hub")
    with pytest.raises(PowerclipError, match="no image in .*hub holds .parquet files: name that folder"):
        prepare(above, tmp_path / "out")


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_hostile_tar_costs_its_bad_members_only(tmp_path):
    bomb = one_colour(0, size=(12000, 12000), mode="1")
    deep = b"[" * 100_000
    good = [
        (name, data) for i in range(20) for name, data in ((f"ok{i}.jpg", picture(i % 7)), (f"ok{i}.txt", b"a dog"))
    ]
    write_tar(tmp_path / "in.tar", [
        *good,
        ("/etc/abs.jpg", picture()), ("/etc/abs.txt", b"a"),
        ("../../up.jpg", picture()), ("../../up.txt", b"a"),
        special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("link.txt", b"a"),
        special("hard.jpg", tarfile.LNKTYPE, "ok0.jpg"), ("hard.txt", b"a"),
        special("dev.jpg", tarfile.CHRTYPE), ("dev.txt", b"a"),
        ("bomb.jpg", bomb), ("bomb.txt", b"a"),
        ("nul.jpg", picture()), ("nul.txt", b"a\0b"),
        ("latin.jpg", picture()), ("latin.txt", b"caf\xe9"),
        ("deep.jpg", picture()), ("deep.txt", b"a"), ("deep.json", deep),
        ("deeper.jpg", picture()), ("deeper.txt", b"a"), ("deeper.phrases.json", deep),
        ("ok1.jpg", picture()), ("ok1.txt", b"again"),
        ("n\udcffme \n.jpg", picture()), ("n\udcffme \n.txt", b"odd name"),
        ("long.jpg", picture()), ("long.txt", b"word " * 25_000),
    ])  # fmt: skip
    report = prepare(tmp_path / "in.tar", tmp_path / "out", PrepareConfig(max_bad_share=0.9))
    assert report["skipped"] == {
        "path leads outside the tar": 2, "no image": 3, "image too large": 1, "caption contains NUL": 1,
        "caption not UTF-8": 1, "malformed phrases.json": 1, "key occurs twice in its tar": 1,
    }  # fmt: skip
    assert (report["samples"], report["remarks"]) == (23, {"malformed json left out": 1})
    samples = {sample.key: sample for sample in read_shards(tmp_path / "out")}
    assert len(samples) == 23
    assert samples["ok1"].caption == "a dog"
    assert len(samples["long"].caption) == 124_999
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tar", "out"]


def test_a_tar_cut_short_gives_what_is_whole(tmp_path):
    source = img2dataset(tmp_path / "in")
    first = source / "00001.tar"
    first.write_bytes(first.read_bytes()[:5000])
    text = io.StringIO()
    report = prepared(source, tmp_path / "out", text=text)
    assert "1 tar damaged or truncated (its rest is lost)); damaged or truncated: 00001.tar; " in text.getvalue()
    assert report["samples"] >= 5


def test_a_million_members_are_read_in_bounded_memory(tmp_path, monkeypatch):
    import tracemalloc

    block = tarfile.TarInfo("a.txt").tobuf()
    with (tmp_path / "many.tar").open("wb") as file:
        for i in range(30_000):
            file.write(block if i % 2 else tarfile.TarInfo(f"{i}.txt").tobuf())
        file.write(b"\0" * 1024)
    tracemalloc.start()
    assert sum(1 for _ in stream_shard(tmp_path / "many.tar")) >= 15_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    monkeypatch.setattr("powerclip.data.shards.MAX_SAMPLES", 1000)
    with pytest.raises(PowerclipError, match="holds more than 1000 samples.*--samples-per-shard"):
        index_shard(tmp_path / "many.tar")


@given(st.data())
def test_no_bytes_break_the_tar_readers(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.tar"
    write_tar(path, [("a.jpg", picture()), ("a.txt", b"a dog"), ("a.json", b"{}"), ("a.njson", b"{}")])
    raw = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=12)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        for entry in stream_shard(path):
            entry.key.encode("utf-8", "surrogateescape")
    except BrokenShardError:
        pass
    try:
        list(read_shards(path))
        for chunk in open_source(str(path), PrepareConfig()).chunks:
            for item in chunk():
                try:
                    item.load()
                except BadSampleError:
                    continue
    except PowerclipError:
        return


@given(st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_no_bytes_break_the_table_readers(tmp_path_factory, raw, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"x{suffix}"
    head = (
        b'{"path": "a.jpg", "caption": "b"}\n'
        if suffix == ".jsonl"
        else b"path,caption\n".replace(b",", b"\t" if suffix == ".tsv" else b",")
    )
    path.write_bytes(head + raw)
    try:
        source = open_source(str(path), PrepareConfig(samples_per_shard=2))
    except PowerclipError:
        return
    names = []
    for chunk in source.chunks:
        for item in chunk():
            names.append(item.name)
            with pytest.raises(BadSampleError):  # there is no such image
                item.load()
    assert len(names) == len(set(names))
