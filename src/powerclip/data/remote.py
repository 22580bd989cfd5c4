"""Where a shard's file comes from: this machine, or a URL that is copied to a bounded folder, with retries."""

import hashlib
import json
import logging
import os
import random
import tempfile
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

from powerclip.errors import PowerclipError, RunFailedError

INDEX_FOLDER = ".index"
"""In each folder of shards: what ``powerclip.data.index`` keeps, a file per shard."""

CHUNK_BYTES = 2**20
GONE = {400, 401, 403, 404, 405, 410}
"""HTTP status codes that another attempt will not change."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to wait for a store."""

    timeout_s: float = 30.0
    """An attempt ends after this long without a byte."""
    attempts: int = 8
    """Attempts in a row without a single new byte, after which the download fails."""
    first_wait_s: float = 1.0
    """Wait after the first failure; it doubles with each, and varies by a quarter so that processes spread out."""
    longest_wait_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Copies of remote files in a local folder; the least recently used are removed when they exceed its size.

    Processes share the folder: each file is fetched by one of them, and appears under its name when it is complete.
    """

    folder: Path = Path.home() / ".cache" / "powerclip" / "shards"
    max_bytes: int = 32 * 2**30
    retry: RetryPolicy = RetryPolicy()

    def path(self, url: str) -> Path:
        """The local copy of a file, which is fetched if it is not there.

        PowerclipError if the store says that there is no such file; RunFailedError if it does not answer, or breaks
        off, time and again.
        """
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{_name(url)}"
        try:
            # Marks it as used; the modification time stays, since an index is only valid for that state of the file.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return path
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                temporary = path.with_name(f".{path.name}.part")
                fetch(url, temporary, retry=self.retry)
                temporary.rename(path)
                self._make_room(path)
        return path

    def read_json(self, url: str) -> Any:
        """A store's small JSON file, not kept; None if missing or malformed; RunFailedError without an answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".json") as file:
            try:
                fetch(url, Path(file.name), retry=self.retry)
                return json.loads(Path(file.name).read_bytes())
            except RunFailedError:
                raise
            except (PowerclipError, ValueError):
                return None

    def _make_room(self, newest: Path) -> None:
        copies = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                copies.append((status.st_atime_ns, status.st_size, path))
        copies.sort()
        total = sum(size for _, size, _ in copies)
        for _, size, path in copies:
            if total <= self.max_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                (path.parent / INDEX_FOLDER / f"{path.name}.npz").unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar of samples: a file of this machine (``cache`` is None) or, with a cache for its copy, behind a URL."""

    location: str
    cache: ShardCache | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return Path(self.location).name if self.cache is None else _name(self.location)

    def path(self) -> Path:
        """Its file on this machine; a remote one is fetched as by ``ShardCache.path``, which raises."""
        return Path(self.location) if self.cache is None else self.cache.path(self.location)

    def __str__(self) -> str:
        return self.location


def is_remote(path: object) -> bool:
    """Whether a path is a URL."""
    return isinstance(path, str) and "://" in path


def find_remote(url: str, cache: ShardCache) -> list[Shard]:
    """The shards of a URL: one tar, or several by braces (``http://host/data/{000000..000099}.tar``).

    PowerclipError if it does not name a tar.
    """
    urls = sorted(expand_urls(url))
    if not all(urlsplit(name).path.endswith(".tar") for name in urls):
        raise PowerclipError(
            f"{url} does not name a .tar file; a store cannot be listed, so name the shards with braces: "
            f"{url.rstrip('/')}/shard-{{000000..000099}}.tar"
        )
    return [Shard(location=name, cache=cache) for name in urls]


def fetch(url: str, path: Path, *, retry: RetryPolicy) -> None:
    """Copy a remote file; if the connection breaks, the next attempt continues after what has arrived.

    PowerclipError if the store says that there is no such file, or the kind of URL is not supported; RunFailedError if
    it failed ``retry.attempts`` times in a row.
    """
    path.unlink(missing_ok=True)
    path.touch()
    failures, started = 0, time.monotonic()
    while True:
        had = path.stat().st_size
        try:
            _append(url, path, retry.timeout_s)
            return
        except urllib.error.HTTPError as error:
            if error.code in GONE:
                raise PowerclipError(f"{url}: the store answers {error.code} {error.reason}; check the URL") from error
            reason = f"{error.code} {error.reason}"
            if error.code == 416:  # it is shorter than what was read of it, so another file by now
                path.write_bytes(b"")
        except FileNotFoundError as error:
            raise PowerclipError(f"{url} is not there; check the URL") from error
        except (OSError, HTTPException, EOFError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if path.stat().st_size > had else failures + 1
        if failures >= retry.attempts:
            raise RunFailedError(
                f"{url} could not be read in {failures} attempts in a row, over {time.monotonic() - started:.0f} s "
                f"(the last one: {reason}); check the store, then continue with --resume auto"
            )
        wait = min(retry.first_wait_s * 2 ** (failures - 1), retry.longest_wait_s) * random.uniform(0.75, 1.25)
        log.warning("%s: %s; trying again in %.1f s (failure %d)", url, reason, wait, failures)
        time.sleep(wait)


def _append(url: str, path: Path, timeout_s: float) -> None:
    """Read from where the local file ends to the end of the remote one."""
    have = path.stat().st_size
    with _open(url, have, timeout_s) as (stream, start, size), path.open("r+b") as file:
        file.truncate(start)  # a store without ranges starts from the beginning
        file.seek(start)
        read = getattr(stream, "read1", stream.read)  # read1 returns what came before a break
        while chunk := read(CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        if size is not None and file.tell() != size:
            raise EOFError(f"it broke off after {file.tell()} of {size} bytes")


@contextmanager
def _open(url: str, have: int, timeout_s: float) -> Iterator[tuple[BinaryIO, int, int | None]]:
    """A stream of a remote file, the byte it starts at, and the size of the complete file if the store gives it."""
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


def _name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name
