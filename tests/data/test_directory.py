import os

import pytest

from powerclip.data import directory
from powerclip.data.directory import directory_of
from powerclip.data.shards import index_shard, write_shards
from powerclip.errors import PowerclipError
from powerclip.scenes import generate
from tests.support.tars import write_tar


@pytest.fixture
def shard(tmp_path):
    write_shards(generate("train", count=5, seed=0), tmp_path)
    return tmp_path / "shard-000000.tar"


@pytest.fixture(autouse=True)
def forgetful():
    directory._directory_of.cache_clear()


def entries(shard):
    found = directory_of(shard)
    return [found[i] for i in range(len(found))]


def never(_shard):
    raise AssertionError("headers were read again")


def test_what_is_kept_is_what_the_headers_say(shard, monkeypatch):
    expected = index_shard(shard)
    assert entries(shard) == expected
    monkeypatch.setattr(directory, "index_shard", never)
    directory._directory_of.cache_clear()
    assert entries(shard) == expected
    assert entries(shard)[3].read() == expected[3].read()
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            directory_of(shard)[outside]


def test_odd_names_and_empty_shards_are_kept_too(tmp_path):
    names = ("caf\u00e9.jpg", "n\udcffme.txt", "deep/er.a.b.JPG", "")
    write_tar(tmp_path / "odd.tar", [(name, b"abc") for name in names])
    write_tar(tmp_path / "empty.tar", [])
    for name in ("odd.tar", "empty.tar"):
        for _ in range(2):
            directory._directory_of.cache_clear()
            assert entries(tmp_path / name) == index_shard(tmp_path / name)


def test_a_shard_that_changes_is_looked_through_again(shard):
    entries(shard)
    shard.unlink()
    write_shards(generate("test", count=2, seed=0), shard.parent)
    assert entries(shard) == index_shard(shard)
    assert len(directory_of(shard)) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b[:300] + b"\xff" * (len(b) - 300)])
def test_a_damaged_directory_is_made_anew(damage, shard):
    expected = entries(shard)
    (kept,) = (shard.parent / ".index").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    directory._directory_of.cache_clear()
    assert entries(shard) == expected
    assert kept.read_bytes() == whole


def test_no_flipped_bit_of_a_directory_does_harm(shard):
    expected = entries(shard)
    (kept,) = (shard.parent / ".index").iterdir()
    whole = kept.read_bytes()
    for place in range(0, len(whole), 11):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        directory._directory_of.cache_clear()
        assert entries(shard) == expected, place


def test_what_cannot_be_read_is_not_kept(shard):
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(PowerclipError, match="no whole tar"):
        directory_of(shard)
    assert not (shard.parent / ".index").exists()
    with pytest.raises(FileNotFoundError):
        directory_of(shard.parent / "nowhere.tar")
