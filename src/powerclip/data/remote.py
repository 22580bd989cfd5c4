"""Shards behind a URL: copied whole to a bounded folder of this machine, with patience for a store that stalls."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from filelock import FileLock
from webdataset.shardlists import expand_urls

from powerclip.data.directory import FOLDER
from powerclip.errors import PowerclipError, RunFailedError

CHUNK_BYTES = 2**20
GONE = {400, 401, 403, 404, 405, 410}
"""Answers that another attempt will not change."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a store is waited for."""

    timeout_s: float = 30.0
    """Silence after which an attempt ends."""
    attempts: int = 8
    """Attempts in a row without a single new byte, after which the store counts as gone."""
    first_wait_s: float = 1.0
    """Wait after the first failure; it doubles with each, and varies by half so that processes do not come back at
    once."""
    longest_wait_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Copies of remote files in a local folder, the least recently used removed when they outgrow it.

    Processes share the folder: each file is fetched by one of them, and appears under its name when it is whole.
    """

    folder: Path
    max_bytes: int = 32 * 2**30
    patience: Patience = Patience()

    def path(self, url: str) -> Path:
        """The local copy of a file, fetched where it is not there.

        Raises:
            PowerclipError: the store says that there is no such file.
            RunFailedError: the store does not answer, or breaks off, time and again.
        """
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{PurePosixPath(urlsplit(url).path).name}"
        try:
            # Marks it as used; the time of change stays, which tells one state of a file from another.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return path
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                temporary = path.with_name(f".{path.name}.part")
                fetch(url, temporary, patience=self.patience)
                temporary.rename(path)
                self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                files.append((status.st_atime_ns, status.st_size, path))
        files.sort()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.max_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                (path.parent / FOLDER / f"{path.name}.npz").unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """A shard behind a URL."""

    url: str
    copies: Copies

    @property
    def name(self) -> str:
        """Its file name."""
        return PurePosixPath(urlsplit(self.url).path).name

    def path(self) -> Path:
        """Its local copy."""
        return self.copies.path(self.url)

    def __str__(self) -> str:
        return self.url


def is_remote(path: object) -> bool:
    """Whether a path is a URL."""
    return isinstance(path, str) and "://" in path


def local(shard: Path | RemoteShard) -> Path:
    """A shard's file on this machine, fetched where it has none yet."""
    return shard.path() if isinstance(shard, RemoteShard) else shard


def find_remote(url: str, copies: Copies) -> list[RemoteShard]:
    """The shards of a URL: one tar, or several by braces (``http://host/data/{000000..000099}.tar``).

    Raises:
        PowerclipError: it names no tar.
    """
    urls = sorted(expand_urls(url))
    if not all(urlsplit(name).path.endswith(".tar") for name in urls):
        raise PowerclipError(
            f"{url} names no .tar file; a store cannot be searched, so name the shards with braces: "
            f"{url.rstrip('/')}/shard-{{000000..000099}}.tar"
        )
    return [RemoteShard(url=name, copies=copies) for name in urls]


def fetch(url: str, path: Path, *, patience: Patience) -> None:
    """Copy a remote file; what has arrived is kept when the connection breaks, and an attempt goes on from there.

    Raises:
        PowerclipError: the store says that there is no such file, or has no way of being read.
        RunFailedError: it failed ``patience.attempts`` times in a row.
    """
    path.unlink(missing_ok=True)
    path.touch()
    failures, begun = 0, time.monotonic()
    while True:
        had = path.stat().st_size
        try:
            _append(url, path, patience.timeout_s)
            return
        except urllib.error.HTTPError as error:
            if error.code in GONE:
                raise PowerclipError(f"{url}: the store answers {error.code} {error.reason}; check the URL") from error
            reason = f"{error.code} {error.reason}"
            if error.code == 416:  # the file is shorter than what was read of it: another one by now
                path.write_bytes(b"")
        except FileNotFoundError as error:
            raise PowerclipError(f"{url} is not there; check the URL") from error
        except (OSError, HTTPException, EOFError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if path.stat().st_size > had else failures + 1
        if failures >= patience.attempts:
            raise RunFailedError(
                f"{url} could not be read in {failures} attempts in a row, over {time.monotonic() - begun:.0f} s; the "
                f"last one: {reason}; see to the store, then go on with --resume auto"
            )
        wait = min(patience.first_wait_s * 2 ** (failures - 1), patience.longest_wait_s) * random.uniform(0.75, 1.25)
        log.warning("%s: %s; trying again in %.1f s (failure %d)", url, reason, wait, failures)
        time.sleep(wait)


def _append(url: str, path: Path, timeout_s: float) -> None:
    """Read from where the local file ends to the end of the remote one."""
    have = path.stat().st_size
    with _open(url, have, timeout_s) as (stream, start, size), path.open("r+b") as file:
        file.truncate(start)  # a store that knows no ranges begins anew
        file.seek(start)
        read = getattr(stream, "read1", stream.read)  # read1 hands over what came before a break
        while chunk := read(CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        if size is not None and file.tell() != size:
            raise EOFError(f"it broke off after {file.tell()} of {size} bytes")


@contextmanager
def _open(url: str, have: int, timeout_s: float) -> Iterator[tuple[BinaryIO, int, int | None]]:
    """A stream of a remote file, the byte it begins at, and the size of the whole file where that is told."""
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            start = have if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            yield answer, start, None if length is None else start + int(length)
        return
    try:
        files, name = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise PowerclipError(f"cannot read {scheme}:// URLs: {error}") from error
    size = files.size(name)
    with files.open(name, "rb") as stream:
        stream.seek(have)
        yield stream, have, size


def read_json(url: str, copies: Copies) -> Any:
    """A small JSON file of a store; None where it has none, or none that can be read."""
    path = copies.folder / f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.{os.getpid()}.json"
    copies.folder.mkdir(parents=True, exist_ok=True)
    try:
        fetch(url, path, patience=copies.patience)
        return json.loads(path.read_text(encoding="utf-8"))
    except RunFailedError:
        raise
    except (PowerclipError, ValueError):
        return None
    finally:
        path.unlink(missing_ok=True)
