"""Search among the images of a folder: their embeddings in one SQLite file,
which is brought up to date, not made again."""

import hashlib
import io
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from errno import ELOOP, ENOENT, ENOTDIR
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.evaluate.datasets.release import files_below
from powerclip.explore.subject import Subject, open_image
from powerclip.files import USER_CACHE
from powerclip.model.digest import digest_of
from powerclip.pixels import encoded, small_copy

DEFAULT_INDEX = USER_CACHE / "search"
"""Where indexes are, one file for each folder and model."""

THUMBNAIL = 256
"""Pixels of the longer side of the stored thumbnails."""

SCHEMA = """CREATE TABLE IF NOT EXISTS images (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, vector BLOB, thumbnail BLOB, problem TEXT)"""
"""``path`` relative to the folder; an image that cannot be used has a problem, and no vector and thumbnail."""


NAMED = 3
"""Folders that cannot be read that are named."""

Stamp = tuple[int | None, int | None]
"""Size and modification time of a file, by which a change is noticed."""


class State(NamedTuple):
    """How far an index is."""

    found: int
    """Images in the folder."""
    done: int
    """Those that were looked at."""
    problems: Sequence[tuple[str, int, bytes]]
    """Why some cannot be used, with their number and the first of them."""
    unread: Sequence[str] = ()
    """Folders and files that cannot be read, of which the index keeps what it has."""

    def __str__(self) -> str:
        usable = self.done - sum(number for _, number, _ in self.problems)
        skipped = [
            f"{number} {problem} ({first.decode(errors='replace')}{', ...' if number > 1 else ''})"
            for problem, number, first in self.problems
        ]
        parts = [f"{usable} of {self.found} images are indexed"]
        if skipped:
            parts.append(f"skipped: {', '.join(skipped)}")
        if self.unread:
            more = ", ..." if len(self.unread) > NAMED else ""
            parts.append(f"cannot be read, so kept as before: {', '.join(self.unread[:NAMED])}{more}")
        return "; ".join(parts)


class Hit(NamedTuple):
    """An image that was found."""

    path: bytes
    score: float
    thumbnail: Image.Image

    @property
    def name(self) -> str:
        """The path for people."""
        return self.path.decode("utf-8", errors="replace")


@dataclass
class ImageIndex:
    """The images of a folder, embedded by one model."""

    folder: Path
    file: Path
    held: tuple[object, list[bytes], Tensor] | None = None
    """The file's state, and the paths and (I, D) vectors that were in it."""

    @classmethod
    def of(cls, folder: Path, subject: Subject, *, indexes: Path) -> "ImageIndex":
        """The index of a folder in the folder of indexes; PowerclipError if there is no such folder."""
        if not folder.is_dir():
            raise PowerclipError(f"there is no folder {folder}; give --images a folder of images")
        assert isinstance(subject.encoder.model, torch.nn.Module)
        key = f"{folder.resolve()} {digest_of(subject.encoder.model)}".encode(errors="surrogateescape")
        indexes.mkdir(parents=True, exist_ok=True)
        return cls(folder, indexes / f"{hashlib.sha256(key).hexdigest()[:16]}.sqlite")

    def update(self, subject: Subject) -> Iterator[State]:
        """Bring the index up to date, with the state after every batch: new and changed images are read, others kept.

        What is done is on disk, so that a next call continues. RunFailedError if the folder or file cannot be read, or
        no image is left in the folder. What the index has of a folder below that cannot be read is kept.
        Each step may be taken in another thread: no connection is held from one to the next.
        """
        found, unread = _images(self.folder)
        with self._open() as database:
            known = {
                path: (size, time) for path, size, time in database.execute("SELECT path, size, mtime_ns FROM images")
            }
            found |= {path: stamp for path, stamp in known.items() if _is_below(path, unread)}
            if known and not found:
                raise RunFailedError(
                    f"{self.folder} has no image any more; mount its disk, or remove {self.file} to empty the index"
                )
            gone = [(path,) for path in known if path not in found]
            with database:
                database.executemany("DELETE FROM images WHERE path = ?", gone)
            state = self._state(database, len(found), unread)
        missing = [path for path, stamp in found.items() if known.get(path) != stamp]
        self.held = None
        yield state
        size_of_batch = subject.encoder.batch_size
        for start in range(0, len(missing), size_of_batch):
            paths = missing[start : start + size_of_batch]
            read = [(path, *_read(self.folder / os.fsdecode(path), found[path])) for path in paths]
            images = [image for *_, image, problem in read if image is not None]
            with torch.inference_mode():
                vectors = iter(subject.afresh().images(images).numpy())
            rows = [
                (
                    path,
                    *stamp,
                    *(
                        (None, None)
                        if image is None
                        else (next(vectors).tobytes(), encoded(small_copy(image, THUMBNAIL), "JPEG", quality=85))
                    ),
                    problem,
                )
                for path, stamp, image, problem in read
            ]
            with self._open() as database:
                with database:
                    database.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
                state = self._state(database, len(found), unread)
            self.held = None
            yield state

    def search(self, query: Tensor | bytes, *, count: int) -> list[Hit]:
        """The ``count`` images with the highest cosine to a unit vector (D,) or to an image by its path, best first."""
        with self._open() as database:
            stat, held = self.file.stat(), self.held
            key = stat.st_ino, stat.st_size, stat.st_mtime_ns
            if held is None or held[0] != key:
                rows = database.execute(
                    "SELECT path, vector FROM images WHERE vector IS NOT NULL ORDER BY path"
                ).fetchall()
                vectors = torch.from_numpy(np.array([np.frombuffer(vector, np.float32) for _, vector in rows]))
                held = self.held = key, [path for path, _ in rows], vectors
            _, paths, vectors = held
            if not paths:
                raise PowerclipError("no image is indexed yet; wait for the index, or press Update the index")
            if isinstance(query, bytes):
                if query not in paths:
                    raise PowerclipError("that image is no longer there; search again")
                query = vectors[paths.index(query)]
            scores, best = (vectors @ query).topk(min(count, len(paths)))
            hits = []
            for score, i in zip(scores.tolist(), best.tolist(), strict=True):
                row = database.execute("SELECT thumbnail FROM images WHERE path = ?", (paths[i],)).fetchone()
                if row is not None and row[0] is not None:
                    hits.append(Hit(paths[i], score, Image.open(io.BytesIO(row[0]), formats=("JPEG",))))
            return hits

    @staticmethod
    def _state(database: sqlite3.Connection, found: int, unread: Sequence[Path]) -> State:
        (done,) = database.execute("SELECT COUNT(*) FROM images").fetchone()
        problems = database.execute(
            "SELECT problem, COUNT(*), MIN(path) FROM images WHERE problem IS NOT NULL "
            "GROUP BY problem ORDER BY 2 DESC, problem"
        )
        return State(found, done, problems.fetchall(), [os.fsencode(path).decode(errors="replace") for path in unread])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, timeout=30)) as database:
                database.execute(SCHEMA)
                yield database
        except sqlite3.Error as error:
            damaged = type(error) is sqlite3.DatabaseError  # others: no space, no permission, locked for too long
            advice = "; remove it, and it is made again" if damaged else ""
            raise RunFailedError(f"the index {self.file} cannot be used ({error}){advice}") from error


def _images(folder: Path) -> tuple[dict[bytes, Stamp], list[Path]]:
    """The images in and below a folder by relative path, in order, but for hidden ones; and what cannot be read."""
    errors, found = list[OSError](), dict[bytes, Stamp]()
    for path in files_below(folder, onerror=errors.append):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            try:
                stat = path.stat()
            except OSError as error:
                if error.errno not in (ENOENT, ENOTDIR, ELOOP):  # gone since, or a link to nowhere
                    errors.append(error)
            else:
                found[os.fsencode(path.relative_to(folder))] = stat.st_size, stat.st_mtime_ns
    unread = [Path(error.filename or folder).relative_to(folder) for error in errors]
    if Path() in unread:
        reason = errors[unread.index(Path())].strerror
        raise RunFailedError(f"{folder} cannot be read ({reason}); the index is kept as it was")
    return found, unread


def _is_below(path: bytes, places: Sequence[Path]) -> bool:
    return any(Path(os.fsdecode(path)).is_relative_to(place) for place in places)


def _read(path: Path, stamp: Stamp) -> tuple[Stamp, Image.Image | None, str | None]:
    """An image, or why it cannot be used; and its stamp, or none if it may be readable the next time."""
    try:
        return stamp, open_image(path), None
    except ValueError as error:
        return stamp, None, str(error)
    except OSError as error:
        return (None, None), None, error.strerror or "cannot be read"
