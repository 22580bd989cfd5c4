"""Shards: tar files of samples in WebDataset's layout, written atomically and read in place."""

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import webdataset
from webdataset.shardlists import expand_urls

from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.data.limits import (
    MAX_ANNOTATION_BYTES,
    MAX_FILES,
    MAX_HEADER_BYTES,
    MAX_HEADER_DIGITS,
    MAX_MEMBER_BYTES,
    MAX_NAME,
    MAX_SAMPLES,
)
from powerclip.data.sample import Sample
from powerclip.errors import BadSampleError, PowerclipError, UnreadSampleError
from powerclip.files import atomic_file, make_folder, read_json

PLAN, REPORT = ".source.json", "report.json"
"""What ``powerclip prepare`` leaves beside its shards: first what they are made of, at its end what became of them."""

MANY_DIGITS = re.compile(rb"\d{%d}" % (MAX_HEADER_DIGITS + 1))


@dataclass(frozen=True, kw_only=True)
class SamplePlace:
    """Where one sample is stored."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]
    """Offset and size in bytes of each file of the sample, by extension."""

    def files(self, *, only: Collection[str]) -> dict[str, bytes]:
        """Those of some files that the sample has, by extension; BadSampleError if too large or unreadable."""
        wanted = {extension: place for extension, place in self.members.items() if extension in only}
        for extension, (_, size) in wanted.items():
            if size > (MAX_MEMBER_BYTES if f".{extension}" in IMAGE_SUFFIXES else MAX_ANNOTATION_BYTES):
                raise BadSampleError("file too large")
        try:
            with self.shard.open("rb", buffering=0) as shard:
                files = {name: os.pread(shard.fileno(), size, offset) for name, (offset, size) in wanted.items()}
        except (OSError, OverflowError) as error:
            raise UnreadSampleError("shard cannot be read") from error
        if any(len(files[name]) < size for name, (_, size) in wanted.items()):
            raise BadSampleError("shard truncated")  # since its headers were read
        return files

    def read(self, *, without: Collection[str] = ()) -> Sample:
        """Read the sample, but for some of its files; BadSampleError if it cannot be used."""
        return Sample.from_members(self.key, self.files(only=self.members.keys() - set(without)))


def write_shards(samples: Iterable[Sample], folder: Path, *, samples_per_shard: int = 1000, first: int = 0) -> int:
    """Write samples as ``shard-000000.tar``, ...; return how many. Each shard appears when it is complete.

    The bytes are a function of the samples. The folder is created if it does not exist; ``first`` is the number of the
    first shard. PowerclipError if a shard of that name exists already.
    """
    make_folder(folder)
    iterator, number, written = iter(samples), first, 0
    while chunk := list(islice(iterator, samples_per_shard)):
        write_shard(chunk, folder / f"shard-{number:06d}.tar")
        number, written = number + 1, written + len(chunk)
    return written


def write_shard(samples: Iterable[Sample], path: Path, *, replace: bool = False) -> None:
    """Write a shard atomically, holding one sample at a time.

    PowerclipError if it exists and ``replace`` is False; ValueError if two samples have one key, since they would be
    read back as one.
    """
    if path.exists() and not replace:
        raise PowerclipError(f"{path} exists already; write into an empty folder")
    with (
        atomic_file(path) as file,
        webdataset.TarWriter(file, encoder=False, mtime=0, user="powerclip", group="powerclip") as tar,
    ):
        keys: set[str] = set()
        for sample in samples:
            if sample.key in keys:
                raise ValueError(f"two samples of {path} have the key {sample.key!r}; give each its own")
            keys.add(sample.key)
            tar.write({"__key__": sample.key, **sample.members()})


def find_shards(path: Path | str) -> list[Path]:
    """The shards at a path: the tar files of a folder, one tar file, or those of a pattern; PowerclipError if none.

    A pattern has ``*``, ``?`` or ``[]`` in the file's name, or braces as WebDataset has: ``{000000..000099}.tar``.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        shards, missing = tars_in(path), "the folder holds no .tar file"
        if not shards and any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise PowerclipError(
                f"{path} is a folder without .tar files, not shards; if images and captions are in it, make shards of "
                f"them: powerclip prepare {path} OUTPUT"
            )
    else:
        shards = sorted(shard for name in expand_urls(str(path)) for shard in _glob(Path(name)))
        missing = "there is no such folder, file or pattern"
    if not shards:
        raise PowerclipError(f"no shards at {path}: {missing}; make some with powerclip prepare SOURCE {path}")
    return shards


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder, by name, without hidden ones: macOS leaves "._NAME.tar" behind."""
    return sorted(path for path in _visible_files(folder.iterdir()) if path.suffix.lower() == ".tar")


def is_unfinished(path: Path) -> bool:
    """Whether a path is a folder whose ``powerclip prepare`` has not made all its shards."""
    try:
        return bool(read_json(path / REPORT)["unfinished_shards"])
    except FileNotFoundError:
        return (path / PLAN).is_file()
    except (OSError, ValueError, LookupError, TypeError):  # a file of the same name, or part of a path
        return False


def _glob(path: Path) -> list[Path]:
    if path.is_file():  # whatever is in its name
        return [path]
    return _visible_files(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else []


def _visible_files(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if not path.name.startswith(".") and path.is_file()]


def index_shard(shard: Path, ignored: Counter[str] | None = None) -> list[SamplePlace]:
    """The samples of a shard in order of their first file, found from its headers alone.

    Links and other special files are skipped, as are hidden ones, the second file of a name and names that are too
    long; ``ignored`` counts them by kind. A sample with such a file is two that have one key: it holds the adjacent
    files that came first, and nothing of the other. Nothing is ever extracted to disk. PowerclipError if the file is
    not a tar, is truncated, or holds more than ``MAX_SAMPLES`` samples.
    """
    samples: dict[str, SamplePlace] = {}
    twice: set[str] = set()
    ignored = Counter() if ignored is None else ignored
    try:
        for key, extension, place in _files(shard, ignored):
            members = samples.setdefault(key, SamplePlace(shard=shard, key=key, members={})).members
            if extension in members:
                ignored["second file of a name"] += 1
                twice.add(key)
            else:
                _add(members, extension, place, ignored)
            if len(samples) > MAX_SAMPLES:
                raise PowerclipError(
                    f"{shard} holds more than {MAX_SAMPLES} samples, too many for one shard; "
                    "powerclip prepare --samples-per-shard makes smaller ones"
                )
        for sample in stream_shard(shard) if twice else ():
            if sample.key in twice:
                samples[sample.key] = sample
                twice.remove(sample.key)
    except BrokenShardError as error:
        if not samples and shard.suffix.lower() != ".tar":
            raise PowerclipError(
                f"{shard} is not a tar file; if it is a table of images and captions, make "
                f"shards of it: powerclip prepare {shard} OUTPUT"
            ) from error
        after = f" after {len(samples)} samples" if samples else ""
        raise PowerclipError(
            f"{shard} is truncated or not a tar file ({error}{after}); re-create it or remove it from the folder"
        ) from error
    return list(samples.values())


def stream_shard(shard: Path, ignored: Counter[str] | None = None) -> Iterator[SamplePlace]:
    """The samples of a shard in order, in bounded memory whatever it holds: adjacent files of one key are a sample.

    The second file of a name begins another sample. ``ignored`` counts hidden and special files as they are passed.
    BrokenShardError if the file is not a tar, or is truncated; what comes before has been yielded, the last sample with
    those of its files that are complete.
    """
    sample: SamplePlace | None = None
    broken: BrokenShardError | None = None
    ignored = Counter() if ignored is None else ignored
    try:
        for key, extension, place in _files(shard, ignored):
            if sample is None or key != sample.key or extension in sample.members:
                if sample is not None:
                    yield sample
                sample = SamplePlace(shard=shard, key=key, members={})
            _add(sample.members, extension, place, ignored)
    except BrokenShardError as error:
        broken = error
    if sample is not None:
        yield sample
    if broken is not None:
        raise broken


def _add(members: dict[str, tuple[int, int]], extension: str, place: tuple[int, int], ignored: Counter[str]) -> None:
    if len(members) < MAX_FILES:
        members[extension] = place
    else:
        ignored[f"file beyond {MAX_FILES} of one key"] += 1


class BrokenShardError(ValueError):
    """A file that is not a tar, or is truncated."""


class _Headers(io.BufferedReader):
    """A tar that is read for its headers, with a limit of bytes for each member, and of digits in a row."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.left = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a member's headers take more than {MAX_HEADER_BYTES} bytes")
        self.left -= size
        block = super().read(size)
        if MANY_DIGITS.search(block):
            raise tarfile.ReadError(f"a member's headers have more than {MAX_HEADER_DIGITS} digits in a row")
        return block


def _files(shard: Path, ignored: Counter[str]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Key, extension, and offset and size of each regular file of a tar; only the file at hand is held in memory.

    ``ignored`` counts the other members, but for folders.
    """
    try:
        with _Headers(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end, size = 0, os.fstat(file.fileno()).st_size
            while (member := tar.next()) is not None:
                if not end < tar.offset <= size:
                    raise tarfile.ReadError(f"the member at byte {member.offset} has an impossible size")
                end, file.left = tar.offset, MAX_HEADER_BYTES
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                tar.pax_headers = {}  # and the records that are for all members
                folder, _, name = member.name.removeprefix("./").rpartition("/")  # tar -cf x.tar . puts it there
                if member.isdir():
                    continue
                # A file with holes takes less space than its size says.
                if not member.isfile() or member.issparse():
                    ignored["link or special file"] += 1
                    continue
                if name.startswith(".") or len(member.name) > MAX_NAME:
                    ignored["hidden" if name.startswith(".") else "name too long"] += 1
                    continue
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                yield key, extension.lower(), (member.offset_data, member.size)
            # tarfile stops at anything that is not a header.
            file.left = MAX_HEADER_BYTES
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
            if block != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no valid header at byte {tar.offset}")
            while block:
                file.left = MAX_HEADER_BYTES
                block = file.read(2**16)
                if block.strip(tarfile.NUL):
                    raise tarfile.ReadError(f"data after the end mark at byte {tar.offset}: cat does not join tars")
    except RecursionError as error:
        raise BrokenShardError("a member has too many headers") from error
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise BrokenShardError(str(error)) from error


def read_shards(path: Path | str) -> Iterator[Sample]:
    """The usable samples at a path, in order; others are skipped."""
    for shard in find_shards(path):
        for place in index_shard(shard):
            try:
                yield place.read()
            except BadSampleError:
                continue
