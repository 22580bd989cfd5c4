import json
import os
from pathlib import Path

import pytest

from powerclip.data import directory, index
from powerclip.data.shards import find_shards, write_shards
from powerclip.errors import PowerclipError
from powerclip.scenes import generate


@pytest.fixture
def shards(tmp_path):
    write_shards(generate("train", count=7, seed=0), tmp_path, samples_per_shard=3)
    return find_shards(tmp_path)


@pytest.fixture
def counted(monkeypatch):
    seen = []
    real = directory.index_shard
    monkeypatch.setattr(directory, "index_shard", lambda shard: seen.append(shard.name) or real(shard))
    return seen


def test_shards_are_counted_once(shards, counted):
    assert index.count_samples(shards) == [3, 3, 1]
    assert index.count_samples(shards) == [3, 3, 1]
    assert counted == [shard.name for shard in shards]
    noted = json.loads((shards[0].parent / "index.json").read_text())["shards"]
    assert {name: entry["samples"] for name, entry in noted.items()} == {
        "shard-000000.tar": 3,
        "shard-000001.tar": 3,
        "shard-000002.tar": 1,
    }


def test_a_changed_shard_is_counted_again_and_a_removed_one_forgotten(shards, counted):
    index.count_samples(shards)
    shards[1].unlink()
    write_shards(generate("test", count=2, seed=0), shards[1].parent, first=1)
    shards[2].unlink()
    assert index.count_samples(shards[:2]) == [3, 2]
    assert counted[3:] == ["shard-000001.tar"]
    assert len(json.loads((shards[0].parent / "index.json").read_text())["shards"]) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"shards": {"shard-000000.tar": 3}}'])
def test_a_broken_index_is_made_anew(shards, content):
    (shards[0].parent / "index.json").write_text(content)
    assert index.count_samples(shards) == [3, 3, 1]
    assert index._read(shards[0].parent)["shard-000000.tar"]["samples"] == 3


def test_where_the_folder_cannot_be_written_to_the_notes_go_elsewhere(shards, counted, tmp_path, monkeypatch):
    write, elsewhere = Path.write_bytes, tmp_path / "elsewhere"

    def refuse(path, data):
        if elsewhere not in path.parents:
            raise PermissionError
        return write(path, data)

    monkeypatch.setattr(directory, "ELSEWHERE", elsewhere)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    for _ in range(2):
        directory._directory_of.cache_clear()
        assert index.count_samples(shards) == [3, 3, 1]
        assert directory.directory_of(shards[0])[0].read().caption
    assert len(counted) == 3
    assert not list(shards[0].parent.glob("*.json"))


def test_where_nothing_can_be_written_the_counts_are_right(shards, counted, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "write_bytes", refuse)
    for _ in range(2):
        directory._directory_of.cache_clear()
        assert index.count_samples(shards) == [3, 3, 1]
    assert len(counted) == 6


@pytest.mark.slow  # starts a process a core
def test_many_shards_are_counted_side_by_side(tmp_path):
    write_shards(generate("train", count=40, seed=0), tmp_path, samples_per_shard=1)
    assert index.count_samples(find_shards(tmp_path)) == [1] * 40


def test_a_shard_cut_short_is_named(shards):
    os.truncate(shards[1], shards[1].stat().st_size // 2)
    with pytest.raises(PowerclipError, match="shard-000001.tar is no whole tar file"):
        index.count_samples(shards)
