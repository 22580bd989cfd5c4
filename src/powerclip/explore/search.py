"""Search among the images of a folder: their embeddings in one SQLite file,
which is brought up to date, not made again."""

import hashlib
import io
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.errors import PowerclipError, RunFailedError, counted
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


class State(NamedTuple):
    """How far an index is."""

    found: int
    """Images in the folder."""
    done: int
    """Those that were looked at."""
    problems: Sequence[tuple[str, int]]
    """Why some cannot be used, with their numbers."""

    def __str__(self) -> str:
        usable = self.done - sum(number for _, number in self.problems)
        skipped = f"; skipped: {counted(dict(self.problems))}" if self.problems else ""
        return f"{usable} of {self.found} images are indexed{skipped}"


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
    held: tuple[list[bytes], Tensor] | None = None
    """Paths and (I, D) vectors, until the file changes."""

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

        What is done is on disk, so that a next call continues. RunFailedError if the folder or file cannot be read.
        Each step may be taken in another thread: no connection is held from one to the next.
        """
        found = dict(_images(self.folder))
        with self._open() as database:
            known = {
                path: (size, time) for path, size, time in database.execute("SELECT path, size, mtime_ns FROM images")
            }
            gone = [(path,) for path in known if path not in found]
            with database:
                database.executemany("DELETE FROM images WHERE path = ?", gone)
            state = self._state(database, len(found))
        missing = [path for path, stamp in found.items() if known.get(path) != stamp]
        self.held = None
        yield state
        size_of_batch = subject.encoder.batch_size
        for start in range(0, len(missing), size_of_batch):
            paths = missing[start : start + size_of_batch]
            read = [(path, *found[path], *_read(self.folder / os.fsdecode(path))) for path in paths]
            images = [image for *_, image, problem in read if image is not None]
            with torch.inference_mode():
                vectors = iter(subject.afresh().images(images).numpy())
            rows = [
                (
                    path,
                    size,
                    time,
                    *(
                        (None, None)
                        if image is None
                        else (next(vectors).tobytes(), encoded(small_copy(image, THUMBNAIL), "JPEG", quality=85))
                    ),
                    problem,
                )
                for path, size, time, image, problem in read
            ]
            with self._open() as database:
                with database:
                    database.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
                state = self._state(database, len(found))
            self.held = None
            yield state

    def search(self, query: Tensor | bytes, *, count: int) -> list[Hit]:
        """The ``count`` images with the highest cosine to a unit vector (D,) or to an image by its path, best first."""
        with self._open() as database:
            held = self.held
            if held is None:
                rows = database.execute(
                    "SELECT path, vector FROM images WHERE vector IS NOT NULL ORDER BY path"
                ).fetchall()
                vectors = torch.from_numpy(np.array([np.frombuffer(vector, np.float32) for _, vector in rows]))
                held = self.held = [path for path, _ in rows], vectors
            paths, vectors = held
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
    def _state(database: sqlite3.Connection, found: int) -> State:
        (done,) = database.execute("SELECT COUNT(*) FROM images").fetchone()
        problems = database.execute(
            "SELECT problem, COUNT(*) FROM images WHERE problem IS NOT NULL GROUP BY problem ORDER BY 2 DESC"
        )
        return State(found, done, problems.fetchall())

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


def _images(folder: Path) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Relative path, size and modification time of the images in and below a folder, in order, but for hidden ones."""
    for path in files_below(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with suppress(OSError):  # gone since, or a link to nowhere
                stat = path.stat()
                yield os.fsencode(path.relative_to(folder)), (stat.st_size, stat.st_mtime_ns)


def _read(path: Path) -> tuple[Image.Image | None, str | None]:
    """An image, or why it cannot be used."""
    try:
        return open_image(path), None
    except ValueError as error:
        return None, str(error)
    except OSError as error:
        return None, error.strerror or "cannot be read"
