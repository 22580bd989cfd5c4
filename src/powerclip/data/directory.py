"""Where the samples of a shard lie: found from its headers once, and kept as arrays beside it for whoever reads it next."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from powerclip.data.shards import Entry, index_shard

FOLDER = ".index"
"""In each folder of shards: an .npz file a shard."""

ELSEWHERE = Path.home() / ".cache" / "powerclip" / "index"
"""Where they go when that folder cannot be written to."""

CACHED_SHARDS = 128
"""Shards whose directories a process keeps, of some 100 bytes a sample; a shuffle reads from 16 of each source at a time."""

Stamp = tuple[int, int]
"""Size, and time of change in nanoseconds."""


@dataclass(frozen=True, kw_only=True)
class Directory:
    """The samples of a shard in order; a hundred bytes each, where a list of entries takes a thousand."""

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

    def __getitem__(self, sample: int) -> Entry:
        if not 0 <= sample < len(self):
            raise IndexError(sample)
        key = self.keys[self.key_ends[sample] : self.key_ends[sample + 1]].decode("utf-8", "surrogateescape")
        rows = self.members[self.member_ends[sample] : self.member_ends[sample + 1]].tolist()
        return Entry(
            shard=self.shard,
            key=key,
            members={self.extensions[extension]: (offset, size) for extension, offset, size in rows},
        )


def directory_of(shard: Path) -> Directory:
    """The directory of a shard, from beside it where it is up to date; otherwise it is made and left there.

    Raises:
        OSError: there is no such file.
        PowerclipError: it is no tar, is cut short, or holds too many samples.
    """
    return _directory_of(shard, stamp_of(shard))


def stamp_of(shard: Path) -> Stamp:
    """What changes when a shard does."""
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def write_beside(folder: Path, name: str, content: bytes) -> None:
    """Write a file of notes on the shards in a folder: there, or elsewhere where that is not allowed."""
    for place in _places(folder):
        target = place / name
        temporary = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(target)
            return
        except OSError:
            temporary.unlink(missing_ok=True)


def read_beside(folder: Path, name: str) -> list[bytes]:
    """The notes of that name that are there, the nearest first."""
    found = []
    for place in _places(folder):
        try:
            found.append((place / name).read_bytes())
        except OSError:
            continue
    return found


def _places(folder: Path) -> tuple[Path, Path]:
    return folder, ELSEWHERE / hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]


@lru_cache(maxsize=CACHED_SHARDS)
def _directory_of(shard: Path, stamp: Stamp) -> Directory:
    name = f"{FOLDER}/{shard.name}.npz"
    for content in read_beside(shard.parent, name):
        found = _unpacked(content, shard, stamp)
        if found is not None:
            return found
    directory = _made(shard)
    write_beside(shard.parent, name, _packed(directory, stamp))
    return directory


def _made(shard: Path) -> Directory:
    entries = index_shard(shard)
    extensions = sorted({extension for entry in entries for extension in entry.members})
    number = {extension: i for i, extension in enumerate(extensions)}
    keys = [entry.key.encode("utf-8", "surrogateescape") for entry in entries]
    members = [(number[extension], *place) for entry in entries for extension, place in entry.members.items()]
    return Directory(
        shard=shard,
        extensions=tuple(extensions),
        keys=b"".join(keys),
        key_ends=np.fromiter(accumulate(map(len, keys), initial=0), dtype=np.int64),
        member_ends=np.fromiter(accumulate((len(entry.members) for entry in entries), initial=0), dtype=np.int64),
        members=np.array(members, dtype=np.int64).reshape(-1, 3),
    )


def _packed(directory: Directory, stamp: Stamp) -> bytes:
    buffer = io.BytesIO()
    head = json.dumps({"stamp": stamp, "extensions": directory.extensions})
    np.savez(
        buffer,
        head=np.frombuffer(head.encode(), dtype=np.uint8),
        keys=np.frombuffer(directory.keys, dtype=np.uint8),
        key_ends=directory.key_ends,
        member_ends=directory.member_ends,
        members=directory.members,
    )
    return buffer.getvalue()


def _unpacked(content: bytes, shard: Path, stamp: Stamp) -> Directory | None:
    """None where it is of another state of the shard, or damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            head = json.loads(arrays["head"].tobytes())
            if tuple(head["stamp"]) != stamp:
                return None
            return Directory(
                shard=shard,
                extensions=tuple(head["extensions"]),
                keys=arrays["keys"].tobytes(),
                key_ends=arrays["key_ends"],
                member_ends=arrays["member_ends"],
                members=arrays["members"],
            )
    except (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
