"""How many samples each shard holds: counted once, kept beside the shards, so that a start reads no tar headers."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import track

from powerclip.data.directory import Directory, directory_of, read_beside, stamp_of, write_beside
from powerclip.data.remote import RemoteShard, local, read_json
from powerclip.data.worker import outlast_first_signal
from powerclip.errors import PowerclipError

NAME = "index.json"
"""In each folder of shards: size, time of change and sample count by shard name."""

MANY_SHARDS = 32
"""From so many new shards on they are counted by several processes, under a progress bar."""

FETCHES = 8
"""Remote shards that are fetched at once to be counted."""

ATTEMPTS = 3
"""Times that a copy is looked for again which another process has removed to make room."""


def find_directory(shard: Path | RemoteShard) -> Directory:
    """Where the samples of a shard lie, on this machine: a remote one is fetched where it is not there.

    Raises:
        OSError: there is no such file.
        PowerclipError: it is no tar, is cut short, or holds too many samples; a remote one cannot be had.
    """
    for attempt in range(ATTEMPTS):
        path = local(shard)
        try:
            return directory_of(path)
        except (FileNotFoundError, PowerclipError):
            if attempt == ATTEMPTS - 1 or isinstance(shard, Path) or path.exists():
                raise
    raise AssertionError("the last attempt returns or raises")


def count_samples(shards: Sequence[Path]) -> list[int]:
    """The number of samples of each shard, from the index where that is up to date; the rest are counted and noted.

    A shard counts as changed when its size or its time of change differs. Where the folder cannot be written to, the
    notes go to ``~/.cache/powerclip/index``.

    Raises:
        PowerclipError: a shard is no tar, or is cut short.
    """
    stamps = {shard: list(stamp_of(shard)) for shard in shards}
    known = {folder: _read(folder) for folder in {shard.parent for shard in shards}}
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

    The others are fetched, several at once, and counted; each count is noted beside the local copies as it is known.

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
    counts = {
        shard.url: entry["samples"]
        for shard in shards
        if (entry := beside[shard.url.rpartition("/")[0]].get(shard.name)) is not None
    }
    new = [shard for shard in shards if shard.url not in counts and shard.url not in counted]
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = pool.map(lambda shard: len(find_directory(shard)), new)
        shown = track(fetched, total=len(new), description="Fetching and counting, once", disable=not new)
        try:
            for shard, samples in zip(new, shown, strict=True):
                counted[shard.url] = samples
                temporary = noted.with_name(f".{noted.name}.{os.getpid()}.tmp")
                temporary.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
                temporary.replace(noted)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [counts[shard.url] if shard.url in counts else counted[shard.url] for shard in shards]


def _count(shards: Sequence[Path]) -> Iterator[int]:
    if len(shards) < MANY_SHARDS:
        yield from map(_samples, shards)
        return
    with ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"), initializer=outlast_first_signal, initargs=(0,)
    ) as pool:
        yield from track(pool.map(_samples, shards), total=len(shards), description="Counting samples, once")


def _samples(shard: Path) -> int:
    return len(directory_of(shard))


def _read(folder: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for content in reversed(read_beside(folder, NAME)):
        try:
            known |= _parsed(json.loads(content))
        except ValueError:
            continue
    return known


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
    write_beside(folder, NAME, (json.dumps({"shards": present}, indent=1) + "\n").encode())
