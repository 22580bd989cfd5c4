"""How many samples each shard holds: counted once, kept beside the shards, so that a start reads no tar headers."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.progress import track

from powerclip.data.remote import RemoteShard, read_json
from powerclip.data.shards import Entry, index_shard

NAME = "index.json"
"""In each folder of shards: size, time of change and sample count by shard name."""

MANY_SHARDS = 32
"""From so many new shards on they are counted by several processes, under a progress bar."""

CACHED_SHARDS = 64
"""Shards whose entries a process keeps; a shuffle reads from 16 at a time."""


def count_samples(shards: Sequence[Path]) -> list[int]:
    """The number of samples of each shard, from the index where that is up to date; the rest are counted and noted.

    A shard counts as changed when its size or its time of change differs. Where the folder cannot be written to, the
    counts are right all the same, and counted again the next time.

    Raises:
        PowerclipError: a shard is no tar, or is cut short.
    """
    stamps = {shard: [(status := shard.stat()).st_size, status.st_mtime_ns] for shard in shards}
    known: dict[Path, dict[str, Any]] = {folder: _read(folder) for folder in {shard.parent for shard in shards}}
    counts = {
        shard: entry["samples"]
        for shard in shards
        if (entry := known[shard.parent].get(shard.name)) and entry["stamp"] == stamps[shard]
    }
    new = [shard for shard in stamps if shard not in counts]
    for shard, samples in zip(new, _count(new), strict=True):
        counts[shard] = samples
        known[shard.parent][shard.name] = {"stamp": stamps[shard], "samples": samples}
    changed: dict[Path, list[Path]] = defaultdict(list)
    for shard in new:
        changed[shard.parent].append(shard)
    for folder in changed:
        _write(folder, known[folder])
    return [counts[shard] for shard in shards]


def count_remote(shards: Sequence[RemoteShard]) -> list[int]:
    """The number of samples of each remote shard, from the ``index.json`` beside them where their store has one.

    The others are fetched and counted once; what was counted is noted beside the local copies.

    Raises:
        PowerclipError: a shard is not there, is no tar, or is cut short.
        RunFailedError: the store does not answer.
    """
    if not shards:
        return []
    copies = shards[0].copies
    folders = {shard.url.rpartition("/")[0] for shard in shards}
    beside = {folder: _parsed(read_json(f"{folder}/{NAME}", copies)) for folder in folders}
    noted = copies.folder / "counts.json"
    try:
        counted: dict[str, int] = {str(k): int(n) for k, n in json.loads(noted.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        counted = {}
    counts, new = [], False
    for shard in shards:
        entry = beside[shard.url.rpartition("/")[0]].get(shard.name)
        if entry is None and shard.url not in counted:
            counted[shard.url], new = len(index_shard(shard.path())), True
        counts.append(entry["samples"] if entry is not None else counted[shard.url])
    if new:
        temporary = noted.with_name(f".{noted.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
        temporary.replace(noted)
    return counts


@lru_cache(maxsize=CACHED_SHARDS)
def entries_of(shard: Path) -> list[Entry]:
    """The samples of a shard, kept for the next who asks."""
    return index_shard(shard)


def _count(shards: Sequence[Path]) -> Iterator[int]:
    if len(shards) < MANY_SHARDS:
        yield from map(_samples, shards)
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from track(pool.map(_samples, shards), total=len(shards), description="Counting samples, once")


def _samples(shard: Path) -> int:
    return len(index_shard(shard))


def _read(folder: Path) -> dict[str, Any]:
    try:
        return _parsed(json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _parsed(value: Any) -> dict[str, Any]:
    """Stamp and count by shard name; nothing where the value is not of that form."""
    try:
        return {
            name: {"stamp": [int(n) for n in entry["stamp"]], "samples": int(entry["samples"])}
            for name, entry in value["shards"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(folder: Path, shards: dict[str, Any]) -> None:
    present = {name: entry for name, entry in sorted(shards.items()) if (folder / name).exists()}
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps({"shards": present}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / NAME)
    except OSError:
        temporary.unlink(missing_ok=True)
