"""Where a shard's file comes from: this machine, or a URL that is copied to a bounded folder, with retries."""

import hashlib
import logging
import os
import random
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import SplitResult, quote, urlsplit

import fsspec
from filelock import FileLock
from webdataset.shardlists import expand_urls

from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import MAX_JSON_BYTES, USER_CACHE, read_json

INDEX_FOLDER = ".index"
"""In each folder of shards: what ``powerclip.data.index`` keeps, a file per shard."""

LOCK_DIGITS = 3
"""Hexadecimal digits of a copy's name that choose its lock: at most 4096 files, and few copies that share one."""

CHUNK_BYTES = 2**20
GONE = {400, 401, 403, 404, 405, 410}
"""HTTP status codes that another attempt will not change."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to wait for a store."""

    timeout_s: float = 30.0
    """An attempt ends after this long without a byte, or with fewer than ``least_bytes_per_s``."""
    least_bytes_per_s: float = 1024.0
    attempts: int = 8
    """Attempts in a row that bring less than that in ``timeout_s``, after which the download fails."""
    first_wait_s: float = 1.0
    """Wait after the first failure; it doubles with each, and varies by a quarter so that processes spread out."""
    longest_wait_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Copies of remote files in a local folder; the least recently used are removed when they exceed its size.

    Processes share the folder: each file is fetched by one of them, and appears under its name when it is complete.
    """

    folder: Path = USER_CACHE / "shards"
    max_bytes: int = 32 * 2**30
    retry: RetryPolicy = RetryPolicy()

    def path(self, url: str) -> Path:
        """The local copy of a file, which is fetched if it is not there.

        PowerclipError if the store says that there is no such file, or it is larger than the folder may be;
        RunFailedError if the store does not answer, or breaks off, time and again.
        """
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{_name(url)}"
        try:
            # Marks it as used; the modification time stays, since an index is only valid for that state of the file.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return path
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(path):
            if not path.exists():
                temporary = path.with_name(f".{path.name}.part")
                try:
                    fetch(url, temporary, retry=self.retry, max_bytes=self.max_bytes)
                    temporary.rename(path)
                finally:
                    temporary.unlink(missing_ok=True)
                self._make_room(path)
        return path

    def drop(self, path: Path, modified_ns: int) -> None:
        """Remove a bad copy, so that it is fetched again, unless that has been done since it was ``modified_ns``."""
        with self._lock(path), suppress(FileNotFoundError):
            if path.stat().st_mtime_ns == modified_ns:
                path.unlink()

    def _lock(self, path: Path) -> FileLock:
        """The lock of a copy and of all whose hashes start alike: a file per copy could never be removed safely, since
        another process may wait for it."""
        return FileLock(path.with_name(f".{path.name[:LOCK_DIGITS]}.lock"))

    def read_json(self, url: str) -> Any:
        """A store's JSON file, not kept; None if missing, too large or malformed; RunFailedError without an answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".json") as file:
            try:
                fetch(url, Path(file.name), retry=self.retry, max_bytes=MAX_JSON_BYTES)
                return read_json(Path(file.name))
            except RunFailedError:
                raise
            except (PowerclipError, ValueError):
                return None

    def _make_room(self, newest: Path) -> None:
        copies = []
        for path in (path for path in self.folder.iterdir() if path.suffix.lower() == ".tar"):
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
    expected: tuple[int, str, str] | None = None
    """What a remote one was found to hold when it was counted (``powerclip.data.index.ShardSummary``)."""

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
    if not all(_parts(name).path.lower().endswith(".tar") for name in urls):
        raise PowerclipError(
            f"{url} does not name a .tar file; a store cannot be listed, so name the shards with braces: "
            f"{url.rstrip('/')}/shard-{{000000..000099}}.tar"
        )
    return [Shard(location=name, cache=cache) for name in urls]


def fetch(url: str, path: Path, *, retry: RetryPolicy, max_bytes: int) -> None:
    """Copy a remote file; if the connection breaks, the next attempt continues after what has arrived.

    It starts over if the store does not say which version of the file it has, or has another by then. PowerclipError if
    the store says that there is no such file, it has more than ``max_bytes``, or the URL is malformed or of a kind that
    is not supported;
    RunFailedError if it failed ``retry.attempts`` times in a row.
    """
    copy, failures, started = _Copy(url, path, retry, max_bytes), 0, time.monotonic()
    while True:
        had = copy.size
        try:
            copy.proceed()
            return
        except urllib.error.HTTPError as error:
            if error.code in GONE:
                raise PowerclipError(f"{url}: the store answers {error.code} {error.reason}; check the URL") from error
            reason = f"{error.code} {error.reason}"
            if error.code == 416:  # it is shorter than what was read of it, so another file by now
                copy.version = ""
        except FileNotFoundError as error:
            raise PowerclipError(f"{url} is not there; check the URL") from error
        except (OSError, ValueError, HTTPException, EOFError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if copy.size - had >= copy.least_bytes else failures + 1
        if failures >= retry.attempts:
            raise RunFailedError(
                f"{url} could not be read in {failures} attempts in a row, over {time.monotonic() - started:.0f} s "
                f"(the last one: {reason}); check the store, then continue with --resume auto"
            )
        wait = min(retry.first_wait_s * 2 ** (failures - 1), retry.longest_wait_s) * random.uniform(0.75, 1.25)
        log.warning("%s: %s; trying again in %.1f s (failure %d)", url, reason, wait, failures)
        time.sleep(wait)


class _Copy:
    """A local copy of a remote file that several attempts make."""

    def __init__(self, url: str, path: Path, retry: RetryPolicy, max_bytes: int) -> None:
        self.url, self.path, self.timeout_s, self.max_bytes = url, path, retry.timeout_s, max_bytes
        self.least_bytes = retry.timeout_s * retry.least_bytes_per_s
        self.version = ""
        """Of the file that the copy is the start of; "" if the store does not say, so that nothing can follow it."""
        path.write_bytes(b"")

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size

    def proceed(self) -> None:
        """Read to the end of the remote file, from the end of the copy on if both are of one version."""
        with self._open() as (stream, start, size), self.path.open("r+b") as file:
            if size is not None and size > self.max_bytes:
                raise PowerclipError(self._too_large(f"{size} bytes"))
            file.truncate(start)
            file.seek(start)
            read = getattr(stream, "read1", stream.read)  # read1 returns what came before a break
            checked, position = time.monotonic(), start
            while chunk := read(CHUNK_BYTES):
                file.write(chunk)
                if file.tell() > self.max_bytes:
                    raise PowerclipError(self._too_large("no end"))
                if time.monotonic() - checked > self.timeout_s:
                    if file.tell() - position < self.least_bytes:
                        raise EOFError(f"it sent {file.tell() - position} bytes in {self.timeout_s:.0f} s")
                    checked, position = time.monotonic(), file.tell()
            file.flush()
            os.fsync(file.fileno())
            if size is not None and file.tell() != size:
                raise EOFError(f"it broke off after {file.tell()} of {size} bytes")

    def _too_large(self, found: str) -> str:
        return f"{self.url} has {found}, where at most {self.max_bytes} are allowed (of shards: --data.cache-gib)"

    @contextmanager
    def _open(self) -> Iterator[tuple[BinaryIO, int, int | None]]:
        """A stream of the remote file, the byte it starts at, and the complete size if the store gives it."""
        scheme = _parts(self.url).scheme
        if scheme in ("http", "https"):
            have = self.size if self.version else 0
            headers = {"Range": f"bytes={have}-", "If-Range": self.version} if have else {}
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                yield answer, *self._accept(answer, have)
            return
        try:
            files, name = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise PowerclipError(f"cannot read {scheme}:// URLs: {error}") from error
        before, self.version = self.version, files.ukey(name)
        start = self.size if self.version == before else 0
        with files.open(name, "rb") as stream:
            stream.seek(start)
            yield stream, start, files.size(name)
        files.invalidate_cache(name)
        if files.ukey(name) != self.version:
            raise EOFError("it was replaced while it was read")

    def _accept(self, answer: HTTPResponse, have: int) -> tuple[int, int | None]:
        """Where the body of an answer starts, and the size of the complete file; EOFError if it does not follow."""
        headers = answer.headers
        if answer.status != 206:
            tag = headers.get("ETag", "")
            self.version = (
                tag if tag.startswith('"') else headers.get("Last-Modified", "")
            )  # a weak tag is not of bytes
            return 0, answer.length
        place = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", headers.get("Content-Range", ""))
        kind = "ETag" if self.version.startswith('"') else "Last-Modified"
        if place is None or int(place[1]) != have or headers.get(kind, self.version) != self.version:
            self.version = ""
            raise EOFError("the store continues with another version, or at another place")
        return have, None if place[2] == "*" else int(place[2])


def _name(url: str) -> str:
    return PurePosixPath(_parts(url).path).name


def _parts(url: str) -> SplitResult:
    """The parts of a URL; PowerclipError if it is malformed, which another attempt would not change."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise ValueError(f"it names no host; write {parts.scheme}://HOST/PATH")
            if "@" in parts.netloc:
                raise ValueError("it holds a user name, which is not supported; leave it out")
            if re.search(r"\s", parts.netloc):
                raise ValueError("its host holds a space; correct it")
            if odd := re.search(r"[^!-~]", url.replace(parts.netloc, "", 1)):
                raise ValueError(f"it holds {odd[0]!r}; write {quote(odd[0])}")
            parts.hostname.encode("idna")
            _ = parts.port  # which checks it
    except ValueError as error:
        raise PowerclipError(f"{url} is not a valid URL: {error}") from error
    return parts
