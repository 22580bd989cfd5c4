"""Writing files so that a reader, or a restart after a power cut,
finds either the old content or the new; checksums; the files below a folder."""

import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from powerclip.errors import PowerclipError

SUMS = "SHA256SUMS"
"""In checkpoints and model folders: a hash of each file, as ``sha256sum --check`` reads them."""

MAX_SUMS_BYTES = 2**20
"""No more is read of such a file."""

MAX_JSON_BYTES = 16 * 2**20
"""A larger JSON file is refused: an ``index.json`` of 150,000 shards is smaller."""


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without one, as in some containers
        return Path(tempfile.gettempdir())


USER_CACHE = _home() / ".cache" / "powerclip"
"""Where files of the user's are kept that can be made again."""


def walk(folder: Path, *, onerror: Callable[[OSError], object] | None = None) -> tuple[list[Path], Counter[str]]:
    """The files and the hidden folders in a folder, links followed, sorted; and the number of folders not entered.

    ``onerror`` gets the error of each folder that cannot be read, which is then not counted.
    """
    found: list[Path] = []
    passed, unread = Counter[str](), list[OSError]()
    top, seen = folder.resolve(), set()
    for root, folders, names in os.walk(folder, onerror=onerror or unread.append, followlinks=True):
        here = Path(root).resolve()
        for name in sorted(folders):
            real = (here / name).resolve()
            if name.startswith("."):
                names.append(name)
                folders.remove(name)
            # A link within the folder, or a second way to the same place, would give the same pairs twice, or for ever.
            # Hidden folders are not entered, but by such a link (git-annex and DVC keep their files there).
            elif real in seen or (real != here / name and (_is_read(real, top=top) or top.is_relative_to(real))):
                passed["link to a folder that is read anyway"] += 1
                folders.remove(name)
            else:
                seen.add(real)
        folders.sort()
        found += [Path(root, name) for name in names]
    if unread:
        passed["folder that cannot be read"] = len(unread)
    return sorted(found), passed


def _is_read(folder: Path, *, top: Path) -> bool:
    """Whether a folder is in another, and not below a hidden one of it."""
    return folder.is_relative_to(top) and not any(part.startswith(".") for part in folder.relative_to(top).parts)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, an OSError that names no file (of a full disk, for example) gets the name of this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name when the block ends; an error in the block leaves what was there.

    The content goes to ``.NAME.HOST-PID-RANDOM.tmp`` in the same folder, which must exist, is synced to the disk and
    renamed over ``path``. The name is unique, so that two writers of one file never share a temporary one. If the file
    cannot be written (OSError, which names it), nothing is left behind.
    """
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name.lstrip('.')}.{unique}.tmp")
    try:
        with naming(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace a file's content by bytes, or by a text in UTF-8 ("?" for what it cannot hold),
    as ``atomic_file`` does."""
    with atomic_file(path) as file:
        file.write(data.encode("utf-8", errors="replace") if isinstance(data, str) else data)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``path`` when the block ends; an error in the block removes it.

    The files in it are synced to the disk. A folder that has the name already is moved aside, then deleted. Only one
    writer at a time: the temporary folder is always ``.NAME.tmp``; the next writer clears what a killed one left, and
    puts ``.NAME.old`` back if that one was killed between the two renames. An OSError names a file, or the folder.
    """
    make_folder(path.parent)
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            for root, _folders, names in os.walk(temporary):
                for name in names:
                    with Path(root, name).open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(Path(root))
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; paths become strings, and NaN and infinities, which JSON lacks, null.

    TypeError if the value holds something that JSON cannot; as with an OSError, what was there stays.
    """
    atomic_write(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file of up to ``MAX_JSON_BYTES``; ValueError, which names the file, if it is not one."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES} bytes")
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); re-create it or remove it") from error


def sha256_of(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of files, as hexadecimal digits."""
    hashes = []
    for path in paths:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes


def checksums(folder: Path, hashes: Callable[[Sequence[Path]], Sequence[str]] = sha256_of) -> str:
    """What ``SUMS`` holds for the files in and below a folder: all but itself and Markdown, which people edit."""
    files = _summed(folder)
    return "".join(f"{digest}  {name}\n" for name, digest in zip(files, hashes(list(files.values())), strict=True))


def find_damaged(folder: Path, hashes: Callable[[Sequence[Path]], Sequence[str]] = sha256_of) -> str | None:
    """The first file that is not as its folder's ``SUMS`` says, by name; None if there is none.

    Files that are not listed, and folders without the list, as earlier versions wrote them, pass.
    """
    try:
        with (folder / SUMS).open("rb") as file:
            lines = file.read(MAX_SUMS_BYTES).decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {name: path for name, path in _summed(folder).items() if name in listed}
    found = zip(files, hashes(list(files.values())), strict=True)
    return next((name for name, digest in found if digest != listed[name]), None)


def _summed(folder: Path) -> dict[str, Path]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name != SUMS and path.suffix != ".md"}


def make_folder(path: Path) -> None:
    """Create a folder, and those above it that are missing, so that they outlast a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def require_writable(output: Path, *, folder: bool = True) -> None:
    """Check before the work that a folder, or a file, can be written; PowerclipError says why not."""
    kind, place = "folder" if folder else "file", output
    try:
        if output.is_dir() and not folder:
            raise PowerclipError(f"output {output} is a folder; name a file")
        place = next(path for path in (output, *output.parents) if path.exists() and (folder or path != output))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        why = f"{place}: {error.strerror}"
        raise PowerclipError(f"output {output} cannot be written ({why}); name another {kind}") from error


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
