"""Where the samples of each shard are stored, and how many there are: found from its headers once, then kept on disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.progress import track

from powerclip.data.remote import INDEX_FOLDER, Shard
from powerclip.data.shards import SamplePlace, index_shard, tars_in
from powerclip.data.worker import outlast_first_signal
from powerclip.errors import PowerclipError
from powerclip.files import atomic_write, write_json

T = TypeVar("T")

SUMMARY = "index.json"
"""In each folder of shards: how many samples each holds, so that a store that serves the folder can say it."""

FALLBACK = Path.home() / ".cache" / "powerclip" / "index"
"""Where the indexes of a folder go that cannot be written to."""

CACHED_SHARDS = 128
"""Indexes that a process holds, at 100 bytes a sample; a shuffle reads from 16 shards of each source at a time."""

MANY_SHARDS = 32
"""From this many new shards on, several processes index them, under a progress bar."""

FETCHES = 8
"""Remote shards that are fetched at once to be counted."""

ATTEMPTS = 3
"""How often a copy is fetched again that another process has removed to make room."""

Stamp = tuple[int, int]
"""Size, and modification time in nanoseconds: a shard whose stamp differs is indexed again."""


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What a start needs to know of a shard."""

    samples: int
    digest: str
    """Hash of the names, places and sizes of its files; empty where a store does not give it."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The samples of a shard in order, in about 100 bytes each; a list of ``SamplePlace`` takes ten times as much."""

    shard: Path
    extensions: tuple[str, ...]
    """Those that occur in the shard."""
    keys: bytes
    """All keys, one after the other, in UTF-8."""
    key_ends: np.ndarray[Any, np.dtype[np.int64]]
    """(samples + 1,) where each key ends; the first is 0."""
    member_ends: np.ndarray[Any, np.dtype[np.int64]]
    """(samples + 1,) where each sample's members end; the first is 0."""
    members: np.ndarray[Any, np.dtype[np.int64]]
    """(members, 3): extension, offset and size in bytes."""

    def __len__(self) -> int:
        return len(self.key_ends) - 1

    def __getitem__(self, sample: int) -> SamplePlace:
        if not 0 <= sample < len(self):
            raise IndexError(sample)
        key = self.keys[self.key_ends[sample] : self.key_ends[sample + 1]].decode("utf-8", "surrogateescape")
        rows = self.members[self.member_ends[sample] : self.member_ends[sample + 1]].tolist()
        return SamplePlace(
            shard=self.shard,
            key=key,
            members={self.extensions[extension]: (offset, size) for extension, offset, size in rows},
        )

    def summary(self) -> ShardSummary:
        """Number of samples and digest."""
        parts = (repr(self.extensions).encode(), self.keys, self.key_ends, self.member_ends, self.members)
        digest = hashlib.blake2b(b"".join(bytes(part) for part in parts), digest_size=16)
        return ShardSummary(samples=len(self), digest=digest.hexdigest())


def open_index(shard: Shard) -> ShardIndex:
    """The index of a shard, which is fetched first if it is remote and has no copy here; a process keeps the latest.

    Raises:
        OSError: there is no such file.
        PowerclipError: it is not a tar, is truncated, or holds too many samples; a remote one cannot be fetched.
    """
    for attempt in range(ATTEMPTS):
        path = shard.path()
        try:
            return _held(path, _stamp(path))
        except (FileNotFoundError, PowerclipError):
            if attempt == ATTEMPTS - 1 or shard.cache is None or path.exists():
                raise
    raise AssertionError("the last attempt returns or raises")


def read_index(shard: Path, *, fallback: Path = FALLBACK) -> ShardIndex:
    """The index of a shard, from disk if it is there and up to date; otherwise it is made and kept.

    Args:
        shard: the tar; its index is in ``.index`` next to it.
        fallback: where the index goes if that folder cannot be written to; if this cannot either, it is not kept.

    Raises:
        OSError: there is no such file.
        PowerclipError: it is not a tar, is truncated, or holds too many samples.
    """
    stored = _stored(shard, fallback, partial(_unpacked, shard))
    if stored is not None:
        return stored
    stamp = _stamp(shard)
    index = _made(shard)
    content = _packed(index, stamp)
    for file in _files(shard, fallback):
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, content)
            break
    return index


def summarize(shards: Sequence[Shard], *, fallback: Path = FALLBACK) -> list[ShardSummary]:
    """How many samples each shard holds, with a digest.

    Shards without an index are indexed, several at once. Remote ones are taken from the ``index.json`` next to them, or
    from the notes of an earlier run; the rest are fetched, and noted one by one.

    Raises:
        PowerclipError: a shard is not there, is not a tar, or is truncated.
        RunFailedError: a store does not answer.
    """
    remote = list(dict.fromkeys(shard for shard in shards if shard.cache is not None))
    here = [Path(location) for location in dict.fromkeys(shard.location for shard in shards if shard.cache is None)]
    summaries = _summaries_here(here, fallback) | _summaries_remote(remote)
    return [summaries[shard.location] for shard in shards]


def _summaries_here(shards: Sequence[Path], fallback: Path) -> dict[str, ShardSummary]:
    summaries: dict[Path, ShardSummary] = {}
    for shard in shards:
        stored = _stored(shard, fallback, _unpacked_summary)
        if stored is not None:
            summaries[shard] = stored
    new = [shard for shard in shards if shard not in summaries]
    summaries.update(zip(new, _indexed(new, fallback), strict=True))
    for folder in {shard.parent for shard in new}:
        known = {tar.name: _stored(tar, fallback, _unpacked_summary) for tar in tars_in(folder)}
        with suppress(OSError):  # of a folder that cannot be written to
            write_json(folder / SUMMARY, {"shards": {name: asdict(s) for name, s in known.items() if s is not None}})
    return {str(shard): summary for shard, summary in summaries.items()}


def _indexed(shards: Sequence[Path], fallback: Path) -> Iterator[ShardSummary]:
    work = partial(_summary_of, fallback=fallback)
    if len(shards) < MANY_SHARDS:
        yield from map(work, shards)
        return
    with ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"), initializer=outlast_first_signal, initargs=(0,)
    ) as pool:
        yield from track(pool.map(work, shards), total=len(shards), description="Indexing shards, once")


def _summary_of(shard: Path, fallback: Path) -> ShardSummary:
    return read_index(shard, fallback=fallback).summary()


def _summaries_remote(shards: Sequence[Shard]) -> dict[str, ShardSummary]:
    if not shards:
        return {}
    cache = shards[0].cache
    assert cache is not None
    notes = cache.folder / "summaries.jsonl"
    known = _read_notes(notes)
    for folder in {shard.location.rpartition("/")[0] for shard in shards}:
        known |= {f"{folder}/{name}": s for name, s in _published(cache.read_json(f"{folder}/{SUMMARY}")).items()}
    new = [shard for shard in shards if shard.location not in known]
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = pool.map(lambda shard: open_index(shard).summary(), new)
        shown = track(fetched, total=len(new), description="Fetching and indexing, once", disable=not new)
        try:
            for shard, summary in zip(new, shown, strict=True):
                known[shard.location] = summary
                with notes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([shard.location, summary.samples, summary.digest]) + "\n")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return known


def _read_notes(path: Path) -> dict[str, ShardSummary]:
    notes = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError):  # of a line that was cut short
            location, samples, digest = json.loads(line)
            notes[str(location)] = ShardSummary(samples=int(samples), digest=str(digest))
    return notes


def _published(value: Any) -> dict[str, ShardSummary]:
    """Summaries by shard name; none where an ``index.json`` does not have that form."""
    try:
        return {
            name: ShardSummary(samples=int(entry["samples"]), digest=str(entry.get("digest", "")))
            for name, entry in value["shards"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


@lru_cache(maxsize=CACHED_SHARDS)
def _held(shard: Path, _stamp: Stamp) -> ShardIndex:
    return read_index(shard)


def _stamp(shard: Path) -> Stamp:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def _files(shard: Path, fallback: Path) -> tuple[Path, Path]:
    """Where a shard's index may be: next to it, or in the fallback."""
    folder = hashlib.sha256(str(shard.parent.absolute()).encode()).hexdigest()[:16]
    return shard.parent / INDEX_FOLDER / f"{shard.name}.npz", fallback / folder / f"{shard.name}.npz"


def _stored(shard: Path, fallback: Path, read: Callable[[Any, Any], T]) -> T | None:
    """What ``read`` makes of the arrays and head of a shard's index on disk; None if it is outdated or damaged."""
    stamp = _stamp(shard)
    for file in _files(shard, fallback):
        try:
            with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                if tuple(head["stamp"]) == stamp:
                    return read(arrays, head)
        except (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            continue
    return None


def _unpacked_summary(_arrays: Any, head: Any) -> ShardSummary:
    return ShardSummary(samples=int(head["samples"]), digest=str(head["digest"]))


def _unpacked(shard: Path, arrays: Any, head: Any) -> ShardIndex:
    index = ShardIndex(
        shard=shard,
        extensions=tuple(head["extensions"]),
        keys=arrays["keys"].tobytes(),
        key_ends=arrays["key_ends"],
        member_ends=arrays["member_ends"],
        members=arrays["members"],
    )
    if len(index) != head["samples"]:
        raise ValueError("an index of another version")
    return index


def _packed(index: ShardIndex, stamp: Stamp) -> bytes:
    head = json.dumps({"stamp": stamp, "extensions": index.extensions, **asdict(index.summary())})
    buffer = BytesIO()
    np.savez(
        buffer,
        head=np.frombuffer(head.encode(), dtype=np.uint8),
        keys=np.frombuffer(index.keys, dtype=np.uint8),
        key_ends=index.key_ends,
        member_ends=index.member_ends,
        members=index.members,
    )
    return buffer.getvalue()


def _made(shard: Path) -> ShardIndex:
    places = index_shard(shard)
    extensions = sorted({extension for place in places for extension in place.members})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [place.key.encode("utf-8", "surrogateescape") for place in places]
    members = [(number[extension], *where) for place in places for extension, where in place.members.items()]
    return ShardIndex(
        shard=shard,
        extensions=tuple(extensions),
        keys=b"".join(keys),
        key_ends=np.fromiter(accumulate(map(len, keys), initial=0), dtype=np.int64),
        member_ends=np.fromiter(accumulate((len(place.members) for place in places), initial=0), dtype=np.int64),
        members=np.array(members, dtype=np.int64).reshape(-1, 3),
    )
