import tarfile
import time
from pathlib import Path

import pytest

from powerclip.data.sample import Sample
from powerclip.data.shards import find_shards, index_shard, read_shards, write_shards
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.phrases import whole_caption_tree
from powerclip.scenes import generate
from tests.support.images import one_colour
from tests.support.tars import header, padded, write_tar


def sample(**changes):
    return Sample(**{"key": "a", "image": one_colour(), "image_extension": "png", "caption": "a dog", **changes})


@pytest.fixture
def shard(tmp_path):
    write_shards([sample(key=f"{i}") for i in range(5)], tmp_path)
    return tmp_path / "shard-000000.tar"


@pytest.mark.parametrize("damage", ["mid-data", "mid-header", "between-members", "garbage-header"])
def test_a_damaged_tar_is_named_with_the_place(damage, shard):
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        member = list(tar)[6]
    cut = {
        "mid-data": whole[: member.offset_data + 1],
        "mid-header": whole[: member.offset + 100],
        "between-members": whole[: member.offset],
        "garbage-header": whole[: member.offset] + b"x" * 512 + whole[member.offset + 512 :],
    }[damage]
    shard.write_bytes(cut)
    with pytest.raises(
        PowerclipError, match=r"shard-000000.tar is truncated or not a tar file \(.* after [34] samples\); re-create"
    ):
        index_shard(shard)


def test_reading_many_shards_keeps_no_file_open(tmp_path):
    for first in range(100):
        write_shards([sample()], tmp_path, first=first)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(list(read_shards(tmp_path))) == 100
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_shard_that_is_replaced_is_read_again(shard):
    assert len(list(read_shards(shard))) == 5
    shard.unlink()
    write_shards([sample(caption="another dog")], shard.parent)
    assert [read.caption for read in read_shards(shard)] == ["another dog"]


def test_a_shard_that_vanishes_costs_its_samples_only(shard):
    entry = index_shard(shard)[0]
    shard.unlink()
    with pytest.raises(BadSampleError, match="shard cannot be read"):
        entry.read()


def test_patterns_find_shards(tmp_path):
    for first in range(12):
        write_shards([sample()], tmp_path, first=first)
    names = [path.name for path in find_shards(f"{tmp_path}/shard-{{000002..000004}}.tar")]
    assert names == ["shard-000002.tar", "shard-000003.tar", "shard-000004.tar"]
    assert len(find_shards(tmp_path / "shard-00001?.tar")) == 2


def test_the_name_of_a_file_is_not_a_pattern(tmp_path):
    for first, name in enumerate(("part[1]-0.tar", "part[1]-1.tar", "part1-0.tar")):
        write_shards([sample()], tmp_path, first=first)
        (tmp_path / f"shard-00000{first}.tar").rename(tmp_path / name)
    assert [path.name for path in find_shards(tmp_path / "part[1]-0.tar")] == ["part[1]-0.tar"]
    assert [path.name for path in find_shards(f"{tmp_path}/part[1]-{{0..1}}.tar")] == ["part[1]-0.tar", "part[1]-1.tar"]
    assert [path.name for path in find_shards(tmp_path / "part[0-9]-0.tar")] == ["part1-0.tar"]


@pytest.mark.parametrize("caption", ["  a dog ", "\ta dog\n"])
def test_offsets_hold_whatever_surrounds_the_caption(caption, tmp_path):
    write_shards([sample(caption=caption, tree=whole_caption_tree(caption))], tmp_path)
    (read,) = read_shards(tmp_path)
    assert [read.caption[start:end] for start, end in read.tree.leaves] == ["a", "dog"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"key": "a.b"}, "without a dot"), ({"key": ""}, "without a dot"), ({"image_extension": "gif"}, "use one of jpg")],
)
def test_what_would_not_be_read_back_is_not_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_shards([sample(**changes)], tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_two_samples_of_one_key_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"two samples of .*shard-000000.tar have the key 'a'; give each its own"):
        write_shards([sample(), sample(caption="another")], tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_an_image_never_gets_the_caption_of_another_sample_of_its_key(tmp_path):
    files = [("a.jpg", b"1"), ("b.jpg", b"2"), ("b.txt", b"b"), ("a.jpg", b"3"), ("a.txt", b"of 3"), ("c.txt", b"c")]
    write_tar(tmp_path / "a.tar", [*files, ("c.jpg", b"4")])
    found = {place.key: place.files(only=place.members) for place in index_shard(tmp_path / "a.tar")}
    assert found == {"a": {"jpg": b"1"}, "b": {"jpg": b"2", "txt": b"b"}, "c": {"txt": b"c", "jpg": b"4"}}
    write_tar(tmp_path / "a.tar", sorted(files))  # apart, as some write them, is no reason to refuse
    assert {"jpg", "txt"} == set(index_shard(tmp_path / "a.tar")[1].members)


def test_samples_survive_their_shard(scenes):
    written, read = list(generate("train", count=50, seed=0)), list(read_shards(scenes))
    assert [path.name for path in find_shards(scenes)] == [f"shard-{i:06d}.tar" for i in range(3)]
    assert read == written


def test_shards_are_a_function_of_their_samples(scenes, tmp_path):
    write_shards(generate("train", count=50, seed=0), tmp_path, samples_per_shard=20)
    for shard in find_shards(scenes):
        assert (tmp_path / shard.name).read_bytes() == shard.read_bytes()
    with pytest.raises(PowerclipError, match="exists already; write into an empty folder"):
        write_shards(generate("train", count=1, seed=0), tmp_path)


def test_a_writer_that_dies_leaves_no_shard(tmp_path):
    def dying():
        yield from generate("train", count=3, seed=0)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(dying(), tmp_path, samples_per_shard=2)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["shard-000000.tar"]


def test_a_truncated_tar_is_named(scenes, tmp_path):
    whole = find_shards(scenes)[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(PowerclipError, match=r"cut.tar is truncated or not a tar file .*re-create it"):
        index_shard(tmp_path / "cut.tar")


def test_links_and_devices_in_a_shard_are_skipped(tmp_path):
    link = tarfile.TarInfo("x.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(tmp_path / "a.tar", [link])
    assert index_shard(tmp_path / "a.tar") == []


def test_a_header_of_digits_is_refused_before_it_is_parsed(tmp_path):
    records = b"7" * 2**17
    (tmp_path / "a.tar").write_bytes(
        header("p", tarfile.XHDTYPE, len(records)) + padded(records) + header() + bytes(1024)
    )
    start = time.process_time()
    with pytest.raises(PowerclipError, match="more than 128 digits in a row"):
        index_shard(tmp_path / "a.tar")
    assert time.process_time() - start < 1  # parsing takes a minute before Python 3.11.10 and 3.12.6
