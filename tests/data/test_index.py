import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from powerclip.data import index
from powerclip.data.index import read_index, summarize
from powerclip.data.remote import Shard
from powerclip.data.shards import find_shards, index_shard, write_shards
from powerclip.errors import PowerclipError
from powerclip.scenes import generate
from tests.support.tars import write_tar


@pytest.fixture
def shards(tmp_path):
    write_shards(generate("train", count=7, seed=0), tmp_path / "data", samples_per_shard=3)
    return find_shards(tmp_path / "data")


@pytest.fixture
def headers_read(monkeypatch):
    """The names of the tars that were opened to read their headers."""
    names, real = [], tarfile.open

    def opened(*arguments, mode="r", **options):
        if mode == "r:":
            names.append(Path(options["fileobj"].raw.name).name)
        return real(*arguments, mode=mode, **options)

    monkeypatch.setattr(tarfile, "open", opened)
    return names


@pytest.fixture
def fallback(monkeypatch, tmp_path):
    monkeypatch.setattr(index, "FALLBACK", tmp_path / "fallback")
    return tmp_path / "fallback"


def counts(shards):
    return [summary.samples for summary in summarize([Shard(location=str(shard)) for shard in shards])]


def places(shard):
    return list(read_index(shard))


def test_shards_are_indexed_once(shards, headers_read):
    assert counts(shards) == counts(shards) == [3, 3, 1]
    assert places(shards[0])[2].read() == index_shard(shards[0])[2].read()
    assert headers_read == [*(shard.name for shard in shards), "shard-000000.tar"]


def test_an_index_says_what_the_headers_say(shards):
    expected = index_shard(shards[0])
    for _ in range(2):  # made, then read
        assert places(shards[0]) == expected
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            read_index(shards[0])[outside]


def test_odd_names_and_empty_shards_are_kept_too(tmp_path):
    names = ("caf\u00e9.jpg", "n\udcffme.txt", "deep/er.a.b.JPG", "x.\udcff", "")
    write_tar(tmp_path / "odd.tar", [(name, b"abc") for name in names])
    write_tar(tmp_path / "empty.tar", [])
    for name in ("odd.tar", "empty.tar"):
        for _ in range(2):
            assert places(tmp_path / name) == index_shard(tmp_path / name)


def test_a_changed_shard_is_indexed_again(shards, headers_read):
    counts(shards)
    shards[1].unlink()
    write_shards(generate("test", count=2, seed=0), shards[1].parent, first=1)
    assert counts(shards) == [3, 2, 1]
    assert headers_read[3:] == ["shard-000001.tar"]
    assert places(shards[1]) == index_shard(shards[1])


def test_the_folder_gets_a_summary_for_those_who_fetch_it(shards):
    counts(shards)
    shards[2].unlink()
    shards[1].unlink()
    write_shards(generate("test", count=2, seed=0), shards[1].parent, first=1)
    (summary,) = summarize([Shard(location=str(shards[1]))])
    published = json.loads((shards[0].parent / "index.json").read_text())["shards"]
    assert {name: entry["samples"] for name, entry in published.items()} == {
        "shard-000000.tar": 3,
        "shard-000001.tar": 2,
    }
    assert published["shard-000001.tar"]["digest"] == summary.digest


def test_the_digest_follows_the_content(tmp_path):
    found = set()
    for name, txt in {"a": b"one", "b": b"one", "c": b"three"}.items():
        write_tar(tmp_path / f"{name}.tar", [("x.jpg", b""), ("x.txt", txt)])
        found.add(read_index(tmp_path / f"{name}.tar").summary().digest)
    assert len(found) == 2


def test_other_content_of_the_same_names_and_sizes_is_noticed(tmp_path):
    """In the first, the middle or the last sample."""
    summaries = []
    for words in ("abcde", "abcde", "Xbcde", "abXde", "abcdX"):
        path = tmp_path / f"{len(summaries)}.tar"
        write_tar(path, [(f"{i}.{name}", word.encode()) for i, word in enumerate(words) for name in ("jpg", "txt")])
        summaries.append(read_index(path).summary())
    assert len({summary.digest for summary in summaries}) == 1
    assert len({summary.content for summary in summaries}) == 4
    assert summaries[0] == summaries[1]
    assert read_index(tmp_path / "0.tar").summary() == summaries[0]


def test_an_index_that_does_not_know_the_content_stays_valid(shards, headers_read):
    summary = read_index(shards[0]).summary()
    (kept,) = (shards[0].parent / ".index").iterdir()
    with np.load(kept) as arrays:
        before = {name: arrays[name] for name in arrays if name != "content"}
    np.savez(kept, **before)
    assert read_index(shards[0]).summary() == summary._replace(content="")
    assert summarize([Shard(location=str(shards[0]))]) == [summary._replace(content="")]
    assert len(headers_read) == 1


def test_files_that_are_not_read_are_counted_but_for_hidden_ones(tmp_path, caplog):
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
    write_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.txt", b"a"), link, ("b.txt", b"b"), ("._a.jpg", b"")])
    for _ in range(2):
        read_index(tmp_path / "a.tar")
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "files that are not read: 1 link or special file"
    ]


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b[:300] + b"\xff" * (len(b) - 300)])
def test_a_damaged_index_is_made_again(damage, shards):
    expected = places(shards[0])
    (kept,) = (shards[0].parent / ".index").iterdir()
    complete = kept.read_bytes()
    kept.write_bytes(damage(complete))
    assert counts(shards[:1]) == [3]
    assert places(shards[0]) == expected
    assert kept.read_bytes() == complete


def test_no_flipped_bit_of_an_index_does_harm(shards):
    expected = places(shards[0])
    (kept,) = (shards[0].parent / ".index").iterdir()
    complete = kept.read_bytes()
    for place in range(0, len(complete), 11):
        kept.write_bytes(complete[:place] + bytes([complete[place] ^ 0x15]) + complete[place + 1 :])
        assert places(shards[0]) == expected, place
        kept.write_bytes(complete[:place] + bytes([complete[place] ^ 8]) + complete[place + 1 :])
        assert counts(shards[:1]) == [3], place


@pytest.mark.parametrize("content", ["", "[]", "3"])
def test_an_index_of_an_earlier_version_is_replaced(shards, content):
    (shards[0].parent / ".index").mkdir()
    (shards[0].parent / ".index" / "shard-000000.tar.npz").write_text(content)
    assert counts(shards) == [3, 3, 1]
    assert len(places(shards[0])) == 3


@pytest.mark.parametrize("content", ["", "[]", '{"shardlist": [{"url": "a.tar"}]}'])
def test_another_programs_index_stays(shards, content):
    (shards[0].parent / "index.json").write_text(content)
    assert counts(shards) == [3, 3, 1]
    assert (shards[0].parent / "index.json").read_text() == content


def test_where_the_folder_cannot_be_written_to_the_indexes_go_to_the_fallback(shards, headers_read, fallback):
    (shards[0].parent / ".index").write_text("in the way")
    (shards[0].parent / "index.json").mkdir()
    for _ in range(2):
        assert counts(shards) == [3, 3, 1]
        assert len(places(shards[0])) == 3
    assert len(headers_read) == 3
    assert len(list(fallback.rglob("*.npz"))) == 3


def test_where_nothing_can_be_written_the_counts_are_right(shards, headers_read, fallback):
    for file in (shards[0].parent / ".index", fallback):
        file.write_text("in the way")
    for _ in range(2):
        assert counts(shards) == [3, 3, 1]
    assert len(headers_read) == 6


@pytest.mark.slow  # starts a process a core
def test_many_shards_are_indexed_at_once(tmp_path):
    write_shards(generate("train", count=40, seed=0), tmp_path, samples_per_shard=1)
    assert counts(find_shards(tmp_path)) == [1] * 40


def test_a_truncated_shard_is_named_and_not_kept(shards):
    os.truncate(shards[1], shards[1].stat().st_size // 2)
    with pytest.raises(PowerclipError, match="shard-000001.tar is truncated or not a tar file"):
        counts(shards)
    assert not (shards[1].parent / ".index" / "shard-000001.tar.npz").exists()
    with pytest.raises(FileNotFoundError):
        read_index(shards[1].parent / "nowhere.tar")


def test_a_script_without_a_main_guard_indexes_in_its_own_process(shards, tmp_path):
    """Processes that are started afresh run the script again, which must not start more of them; so they die."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from powerclip.data import index\n"
        "from powerclip.data.remote import Shard\n"
        "index.MANY_SHARDS = 2\n"
        "print([found.samples for found in index.summarize([Shard(location=path) for path in sys.argv[1:]])])\n"
    )
    done = subprocess.run([sys.executable, str(script), *map(str, shards)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[3, 3, 1]"
