"""How many samples each shard holds, and where: found from its headers once, then kept on disk."""

import hashlib
import json
import logging
import multiprocessing
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from powerclip.data.limits import MAX_SAMPLES
from powerclip.data.remote import INDEX_FOLDER, Shard
from powerclip.data.shards import SamplePlace, index_shard, tars_in
from powerclip.data.worker import outlast_first_signal
from powerclip.errors import PowerclipError, RunFailedError, counted
from powerclip.files import USER_CACHE, atomic_write, read_json, write_json

SUMMARY = "index.json"
"""In each folder of shards: how many samples each holds, so that a store that serves the folder can say it."""

NOTES = "summaries.jsonl"
"""In a folder of copies: the summaries of remote shards, the latest of a shard last."""

FALLBACK = USER_CACHE / "index"
"""Where the indexes of a folder go that cannot be written to; if this cannot either, they are not kept."""

CACHED_SHARDS = 128
"""Indexes that a process holds, at 100 bytes a sample; a shuffle reads from 16 shards of each source at a time."""

MANY_SHARDS = 32
"""From this many new shards on, several processes index them, under a progress bar."""

FETCHES = 8
"""Remote shards that are fetched at once to be counted."""

ATTEMPTS = 3
"""How often a copy is fetched that is bad, or that another process has removed to make room."""

ARRAYS = ("extensions", "keys", "key_ends", "member_ends", "members")
"""Of an index, as stored with its shard's stamp and summary."""

CONTENT_BYTES = 2**20
"""How much of each file of a shard's first, middle and last sample is hashed."""

Stamp = tuple[int, int]
"""Size, and modification time in nanoseconds: a shard whose stamp differs is indexed again."""

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

_refused: dict[Shard, PowerclipError] = {}
"""Remote shards that this process does not fetch again, and why."""


class ShardSummary(NamedTuple):
    """What a start needs to know of a shard."""

    samples: int
    digest: str
    """Hash of the names, places and sizes of its files; empty where a store does not give it."""
    content: str = ""
    """Hash of what three of its samples hold; empty where a store or an index of an earlier version does not give it.
    """

    def fits(self, expected: tuple[int, str, str]) -> bool:
        """Whether a shard has what was expected of it, as far as both are known."""
        known = zip(self, expected, strict=True)
        return all(mine == theirs or "" in (mine, theirs) for mine, theirs in known)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The samples of a shard in order, in about 100 bytes each; a list of ``SamplePlace`` takes ten times as much."""

    shard: Path
    extensions: Array
    """(extensions,) str: those that occur in the shard."""
    keys: Array
    """(bytes,) uint8: all keys, one after the other, in UTF-8."""
    key_ends: Array
    member_ends: Array
    """(samples + 1,) int64, both: where each sample's key and members end; the first is 0."""
    members: Array
    """(members, 3) int64: extension, offset and size in bytes."""
    content: str = ""
    """As in ``ShardSummary``."""

    def __len__(self) -> int:
        return len(self.key_ends) - 1

    def __getitem__(self, sample: int) -> SamplePlace:
        if not 0 <= sample < len(self):
            raise IndexError(sample)
        key = self.keys[self.key_ends[sample] : self.key_ends[sample + 1]].tobytes().decode("utf-8", "surrogateescape")
        rows = self.members[self.member_ends[sample] : self.member_ends[sample + 1]].tolist()
        members = {str(self.extensions[extension]): (offset, size) for extension, offset, size in rows}
        return SamplePlace(shard=self.shard, key=key, members=members)

    def __iter__(self) -> Iterator[SamplePlace]:
        return map(self.__getitem__, range(len(self)))

    def summary(self) -> ShardSummary:
        """Number of samples and digests."""
        arrays = b"".join(getattr(self, name).tobytes() for name in ARRAYS)
        return ShardSummary(len(self), hashlib.blake2b(arrays, digest_size=16).hexdigest(), self.content)


def open_index(shard: Shard) -> ShardIndex:
    """A shard's index, fetched first if need be; the latest are held. Raises as ``read_index``, ``Shard.path``.

    A copy of a remote shard that cannot be indexed (it was cut, say) is dropped and fetched again, in each process
    ``ATTEMPTS`` times at most; one that is not as ``shard.expected``, once, after which RunFailedError is raised.
    """
    if shard.cache is None:
        path = shard.path()
        return _held(path, _stamp(path))
    if shard in _refused:
        raise type(_refused[shard])(str(_refused[shard]))
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        path = shard.path()
        try:
            stamp = _stamp(path)
            return _held(path, stamp, shard.expected)
        except FileNotFoundError as error:  # another process has removed it to make room
            failure = error
        except PowerclipError as error:
            shard.cache.drop(path, stamp[1])
            if isinstance(error, _OtherShardError) and isinstance(failure, _OtherShardError):  # not an old copy, then
                _note(shard, error.summary)
                _refused[shard] = RunFailedError(
                    f"{shard} is not the file that was counted: it was replaced in the store, or the {SUMMARY} next to "
                    "it is out of date; correct that, or train on what the store has now in a new run"
                )
                raise _refused[shard] from error
            failure = error
    if isinstance(failure, PowerclipError):
        reason = failure.__cause__ or failure
        _refused[shard] = PowerclipError(
            f"{shard} was fetched {ATTEMPTS} times and is not a complete tar ({reason}); check the store"
        )
        raise _refused[shard] from failure
    assert failure is not None
    raise failure


def read_index(shard: Path) -> ShardIndex:
    """The index of a shard, in ``.index`` next to it or in ``FALLBACK``; made and kept there if none is up to date.

    OSError if there is no such file; PowerclipError if it is not a tar, is truncated, or holds too many samples.
    """
    if (stored := _stored(shard, (*ARRAYS, "content"))) is not None:
        content = str(stored.pop("content"))
        return ShardIndex(shard=shard, content=content, **stored)
    stamp, index, buffer = _stamp(shard), _made(shard), BytesIO()
    arrays = {name: getattr(index, name) for name in ARRAYS}
    np.savez(buffer, stamp=stamp, **index.summary()._asdict(), **arrays)
    for file in _files(shard):
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, buffer.getvalue())
            break
    return index


def summarize(shards: Sequence[Shard]) -> list[ShardSummary]:
    """How many samples each shard holds, with a digest.

    Shards without an index are indexed, several at once. Remote ones are taken from the ``index.json`` next to them, or
    from the notes of an earlier run; the rest are fetched, and noted one by one. PowerclipError if a shard is not
    there, is not a tar, or is truncated; RunFailedError if a store does not answer.
    """
    remote = list(dict.fromkeys(shard for shard in shards if shard.cache is not None))
    here = [Path(location) for location in dict.fromkeys(shard.location for shard in shards if shard.cache is None)]
    summaries = _summaries_here(here) | _summaries_remote(remote)
    return [summaries[shard.location] for shard in shards]


def _summaries_here(shards: Sequence[Path]) -> dict[str, ShardSummary]:
    stored = {shard: _stored_summary(shard) for shard in shards}
    new = [shard for shard, summary in stored.items() if summary is None]
    made = dict(zip(new, _indexed(new), strict=True))
    for file in {shard.parent / SUMMARY for shard in new}:
        with suppress(OSError, ValueError):  # where it cannot be written to, or is not JSON
            if not file.exists() or _published(read_json(file)):  # another program's file of that name stays
                known = {tar.name: s._asdict() for tar in tars_in(file.parent) if (s := _stored_summary(tar))}
                write_json(file, {"shards": known})
    return {str(shard): summary or made[shard] for shard, summary in stored.items()}


def _indexed(shards: Sequence[Path]) -> Iterator[ShardSummary]:
    if len(shards) < MANY_SHARDS:
        yield from map(_indexed_one, shards)
        return
    spawn, done = multiprocessing.get_context("spawn"), 0
    try:
        with ProcessPoolExecutor(mp_context=spawn, initializer=outlast_first_signal, initargs=(0,)) as pool:
            found = pool.map(_indexed_one, shards)
            for summary in track(found, total=len(shards), description="Indexing shards, once"):
                done += 1
                yield summary
    except BrokenProcessPool:  # a script that trains outside of ``if __name__ == "__main__"`` cannot have processes
        yield from map(_indexed_one, shards[done:])


def _indexed_one(shard: Path) -> ShardSummary:
    return read_index(shard).summary()


def _summaries_remote(shards: Sequence[Shard]) -> dict[str, ShardSummary]:
    if not shards:
        return {}
    cache = shards[0].cache
    assert cache is not None
    known = _read_notes(cache.folder / NOTES)
    for folder in {shard.location.rpartition("/")[0] for shard in shards}:
        known |= {f"{folder}/{name}": s for name, s in _published(cache.read_json(f"{folder}/{SUMMARY}")).items()}
    new = [shard for shard in shards if shard.location not in known]
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = pool.map(lambda shard: open_index(shard).summary(), new)
        shown = track(fetched, total=len(new), description="Fetching and indexing, once", disable=not new)
        try:
            for shard, summary in zip(new, shown, strict=True):
                known[shard.location] = summary
                _note(shard, summary)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return known


def _note(shard: Shard, summary: ShardSummary) -> None:
    assert shard.cache is not None
    with (shard.cache.folder / NOTES).open("a", encoding="utf-8") as file:
        file.write(json.dumps([shard.location, *summary]) + "\n")


def _read_notes(path: Path) -> dict[str, ShardSummary]:
    notes = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError):  # of a truncated line
            location, samples, *digests = json.loads(line)
            notes[str(location)] = ShardSummary(int(samples), *map(str, digests))
    return notes


def _published(value: Any) -> dict[str, ShardSummary]:
    """Summaries by shard name; without those that an ``index.json`` does not have in that form, or that cannot be."""
    summaries = {}
    shards = value.get("shards") if isinstance(value, dict) else None
    for name, entry in shards.items() if isinstance(shards, dict) else ():
        samples = entry.get("samples") if isinstance(entry, dict) else None
        if type(samples) is int and 0 <= samples <= MAX_SAMPLES:
            digests = (str(entry.get(field, ""))[:64] for field in ("digest", "content"))
            summaries[name] = ShardSummary(samples, *digests)
    return summaries


class _OtherShardError(PowerclipError):
    """A copy that is not what was expected."""

    def __init__(self, summary: ShardSummary) -> None:
        super().__init__("another file")
        self.summary = summary


@lru_cache(maxsize=CACHED_SHARDS)
def _held(shard: Path, _stamp: Stamp, expected: tuple[int, str, str] | None = None) -> ShardIndex:
    index = read_index(shard)
    if expected is not None and not (summary := index.summary()).fits(expected):
        raise _OtherShardError(summary)
    return index


def _stamp(shard: Path) -> Stamp:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def _files(shard: Path) -> tuple[Path, Path]:
    """Where a shard's index may be."""
    folder = hashlib.sha256(str(shard.parent.absolute()).encode()).hexdigest()[:16]
    return shard.parent / INDEX_FOLDER / f"{shard.name}.npz", FALLBACK / folder / f"{shard.name}.npz"


def _stored_summary(shard: Path) -> ShardSummary | None:
    stored = _stored(shard, ShardSummary._fields)
    return (
        None if stored is None else ShardSummary(int(stored["samples"]), str(stored["digest"]), str(stored["content"]))
    )


def _stored(shard: Path, names: Sequence[str]) -> dict[str, Array] | None:
    """Some arrays of a shard's index on disk; None if there is none, or it is outdated, old or damaged."""
    stamp = list(_stamp(shard))
    for file in _files(shard):
        try:
            with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
                if arrays["stamp"].tolist() == stamp:
                    before = {"content": np.array("")}  # which earlier versions did not keep
                    return {name: arrays[name] if name in arrays else before[name] for name in names}
        except (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            continue
    return None


def _made(shard: Path) -> ShardIndex:
    ignored: Counter[str] = Counter()
    places = index_shard(shard, ignored)
    if unread := {kind: number for kind, number in ignored.items() if kind != "hidden"}:
        log.warning("%s: files that are not read: %s", shard, counted(unread))
    extensions = sorted({extension for place in places for extension in place.members})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [place.key.encode("utf-8", "surrogateescape") for place in places]
    members = [(number[extension], *where) for place in places for extension, where in place.members.items()]
    return ShardIndex(
        shard=shard,
        extensions=np.array(extensions, dtype=np.str_),
        keys=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_ends=np.cumsum([0, *map(len, keys)]),
        member_ends=np.cumsum([0, *(len(place.members) for place in places)]),
        members=np.array(members, dtype=np.int64).reshape(-1, 3),
        content=_content(places),
    )


def _content(places: Sequence[SamplePlace]) -> str:
    """Hash of the start of each file of the first, the middle and the last sample."""
    digest, count = hashlib.blake2b(digest_size=16), len(places)
    for place in (places[i] for i in sorted({0, count // 2, count - 1}) if count):
        with place.shard.open("rb", buffering=0) as file:
            for offset, size in place.members.values():
                digest.update(os.pread(file.fileno(), min(size, CONTENT_BYTES), offset))
    return digest.hexdigest()
