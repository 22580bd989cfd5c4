"""Shards: tar files of samples in WebDataset's layout, written whole and read in place."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import webdataset
from webdataset.shardlists import expand_urls

from powerclip.data.sample import CAPTION_EXTENSION, IMAGE_EXTENSIONS, BadSampleError, Sample
from powerclip.types import PowerclipError

MAX_MEMBER_BYTES = 64 * 2**20
"""A larger file in a shard is not read."""

MAX_SAMPLES = 200_000
"""Samples of a shard that can be trained on: their places are held in memory. Published shards hold 10,000."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one sample lies."""

    shard: Path
    """The tar file."""
    key: str
    """The sample's key."""
    members: dict[str, tuple[int, int]]
    """Offset and size in bytes of each file of the sample, by extension."""

    def files(self, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> dict[str, bytes]:
        """The sample's files by extension: all of them, or some.

        Raises:
            BadSampleError: one is too large, or cannot be read.
        """
        wanted = {
            extension: place
            for extension, place in self.members.items()
            if extension not in without and (only is None or extension in only)
        }
        if any(size > MAX_MEMBER_BYTES for _, size in wanted.values()):
            raise BadSampleError("file too large")
        try:
            with self.shard.open("rb", buffering=0) as shard:
                return {name: os.pread(shard.fileno(), size, offset) for name, (offset, size) in wanted.items()}
        except (OSError, OverflowError) as error:
            raise BadSampleError("shard cannot be read") from error

    def read(self, *, without: Collection[str] = ()) -> Sample:
        """Read the sample, some of its files left out.

        Raises:
            BadSampleError: it cannot be used.
        """
        return Sample.from_members(self.key, self.files(without=without))


def write_shards(samples: Iterable[Sample], folder: Path, *, samples_per_shard: int = 1000, first: int = 0) -> int:
    """Write samples as ``shard-000000.tar``, ``shard-000001.tar``, ...; each appears under its name when whole.

    The bytes are a function of the samples.

    Args:
        samples: what to write.
        folder: made if it is not there.
        samples_per_shard: samples in one tar.
        first: number of the first shard.

    Returns:
        The number of samples written.

    Raises:
        PowerclipError: a shard of that name is already there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    iterator, number, written = iter(samples), first, 0
    while chunk := list(islice(iterator, samples_per_shard)):
        write_shard(chunk, folder / f"shard-{number:06d}.tar")
        number, written = number + 1, written + len(chunk)
    return written


def write_shard(samples: Iterable[Sample], path: Path, *, replace: bool = False) -> None:
    """Write one shard: to a temporary name, synced, then renamed.

    Args:
        samples: taken one by one, and never held together.
        path: its name.
        replace: put it in the place of one that is there.

    Raises:
        PowerclipError: the shard is already there.
    """
    if path.exists() and not replace:
        raise PowerclipError(f"{path} is already there; write into an empty folder")
    # The name is this process's own: on a cluster, one thought dead may still be writing the same shard.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with webdataset.TarWriter(file, encoder=False, mtime=0, user="powerclip", group="powerclip") as tar:
                for sample in samples:
                    tar.write({"__key__": sample.key, **sample.members()})
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_shards(path: Path | str) -> list[Path]:
    """The shards at a path: the tar files of a folder, one tar file, or those of a pattern.

    A pattern has ``*``, ``?`` or ``[]`` in the file's name, or braces as WebDataset has: ``{000000..000099}.tar``.

    Raises:
        PowerclipError: there are none.
    """
    path = Path(path)
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        missing = "the folder holds no .tar file"
    elif path.is_file():
        return [path]
    else:
        shards = sorted(shard for name in expand_urls(str(path)) for shard in _glob(Path(name)))
        missing = "there is no such folder, file or pattern"
    if not shards:
        raise PowerclipError(f"no shards at {path}: {missing}; make some with powerclip prepare SOURCE {path}")
    return shards


def _glob(path: Path) -> list[Path]:
    if any(c in path.name for c in "*?["):
        return list(path.parent.glob(path.name))
    return [path] if path.is_file() else []


def index_shard(shard: Path) -> list[Entry]:
    """The samples of a shard in order of their first file, found from its headers alone.

    Files other than regular ones are passed over, and so is the second file of a name; nothing is ever extracted to
    disk.

    Raises:
        PowerclipError: the file is no tar, is cut short, or holds more than ``MAX_SAMPLES`` samples.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        for key, extension, place in _files(shard):
            samples.setdefault(key, {}).setdefault(extension, place)
            if len(samples) > MAX_SAMPLES:
                raise PowerclipError(
                    f"{shard} holds more than {MAX_SAMPLES} samples, too many for one shard; "
                    "powerclip prepare --samples-per-shard makes smaller ones"
                )
    except BrokenShardError as error:
        after = f" after {len(samples)} samples" if samples else ""
        raise PowerclipError(
            f"{shard} is no whole tar file ({error}{after}); make it anew or take it out of the folder"
        ) from error
    return [Entry(shard=shard, key=key, members=members) for key, members in samples.items()]


def stream_shard(shard: Path) -> Iterator[Entry]:
    """The samples of a shard in order, in bounded memory whatever it holds: neighbours of one key are a sample.

    Raises:
        BrokenShardError: the file is no tar, or is cut short; the whole samples before that have come.
    """
    key: str | None = None
    members: dict[str, tuple[int, int]] = {}
    for name, extension, place in _files(shard):
        if name != key or extension in members:
            if key is not None:
                yield Entry(shard=shard, key=key, members=members)
            key, members = name, {}
        members[extension] = place
    if key is not None:
        yield Entry(shard=shard, key=key, members=members)


class BrokenShardError(ValueError):
    """A file that is no tar, or one that is cut short."""


def _files(shard: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Key, extension, and offset and size of each regular file of a tar; only the file at hand is held in memory."""
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                yield key, extension.lower(), (member.offset_data, member.size)
            _check_end(tar)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise BrokenShardError(str(error)) from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise where the walk over the headers ended on anything but the mark of the end: tarfile takes both for it."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends without a mark at byte {tar.offset}")
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no valid header at byte {tar.offset}")


def read_shards(path: Path | str) -> Iterator[Sample]:
    """The usable samples at a path, in order; one that cannot be used is passed over."""
    for shard in find_shards(path):
        for entry in index_shard(shard):
            try:
                yield entry.read()
            except BadSampleError:
                continue


def probe(path: Path | str, *, samples: int = 100) -> None:
    """Look at the first samples before anything is done with them.

    Raises:
        PowerclipError: no shards, or none of the first samples has an image and a caption (the message names the
            extensions that were seen).
    """
    shards = find_shards(path)
    entries = index_shard(shards[0])[:samples]
    if not entries:
        raise PowerclipError(f"{shards[0]} holds no sample; expected KEY.jpg, .png or .webp with KEY.txt")
    seen = sorted({extension for entry in entries for extension in entry.members})
    if not any(set(IMAGE_EXTENSIONS) & set(entry.members) for entry in entries):
        wanted = f"no image under {', '.join(IMAGE_EXTENSIONS)}"
    elif not any({CAPTION_EXTENSION, "njson"} & set(entry.members) for entry in entries):
        wanted = f"no caption under {CAPTION_EXTENSION}"
    else:
        return
    raise PowerclipError(f"{wanted} in the first {len(entries)} samples of {shards[0]}; keys seen: {', '.join(seen)}")
