"""The files of a release: annotations that are checked for its form, and images wherever they are below its folder."""

import csv
import filecmp
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cached_property
from itertools import combinations, groupby, takewhile
from pathlib import Path, PurePath
from typing import Any

from powerclip.data.parquet import open_parquet, read_group
from powerclip.errors import PowerclipError, needs_extra
from powerclip.evaluate.datasets.images import Box, FileImage, TableImage
from powerclip.files import walk
from powerclip.tasks import HardNegative, HardNegatives, Quadruple

Row = Mapping[str, Any]

TEXT = str
NUMBER = (int, float)
FORMS: Mapping[type, str] = {list: "a list", dict: "an object"}


class Release:
    """A folder with a release's files, found by name in an index of all folders below.

    Links are followed; what ``is_hidden`` is skipped. PowerclipError if a folder below cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.folder = folder

    @cached_property
    def _index(self) -> dict[str, list[Path]]:
        """All files by name."""
        index: dict[str, list[Path]] = {}
        seen: set[str] = set()
        for place, folders, names in os.walk(self.folder, onerror=refuse, followlinks=True):
            if (real := os.path.realpath(place)) in seen:  # a link to a folder above or beside
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(names):
                if not is_hidden(name):
                    index.setdefault(name, []).append(Path(place, name))
        return index

    @cached_property
    def _by_folder(self) -> dict[tuple[str, ...], list[Path]]:
        """All files by the last two parts of their paths: thousands may have one name, each in its own folder."""
        index: dict[tuple[str, ...], list[Path]] = {}
        for path in (path for paths in self._index.values() for path in paths):
            index.setdefault(path.parts[-2:], []).append(path)
        return index

    def files(self, *patterns: str) -> list[Path]:
        """The files whose names match one of the patterns."""
        names = [name for name in self._index if any(fnmatch(name, pattern) for pattern in patterns)]
        return sorted(path for name in names for path in self._index[name])

    def file(self, name: str) -> Path:
        """A file by name, or by the end of its path; PowerclipError if there is none, or several equally close."""
        path = self.find(name, exact=True)
        if path is None:
            raise PowerclipError(f"{self.folder} lacks {name} of the release; add it")
        return path

    def images(
        self, names: Sequence[str], crops: Sequence[Box | None] | None = None, *, exact: bool = False
    ) -> list[FileImage]:
        """Images by name, wherever they are; PowerclipError if some are missing.

        Where a name has folders, they decide between images of one name; with ``exact`` an image must be in them.
        """
        found = {name: self.find(name, exact=exact) for name in dict.fromkeys(names)}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            raise PowerclipError(
                f"{len(missing)} of {len(found)} images are not under {self.folder}: {missing[0]}"
                f"{', ...' if len(missing) > 1 else ''}; add them, in a folder of any name"
            )
        paths = [found[name] or Path() for name in names]
        return [FileImage(path, crop) for path, crop in zip(paths, crops or [None] * len(paths), strict=True)]

    def rows(self, name: str, columns: Mapping[str, Any] | Sequence[str], *, form: type = list) -> list[Row]:
        """The rows of a JSON file of the given form (a list, or an object of rows), a ``.jsonl`` or a ``.csv``.

        PowerclipError, in one line, if the file has another form or a row lacks one of the columns, given with their
        types (text by default): it may be a file of the same name of another release.
        """
        path = self.file(name)
        columns = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, TEXT)
        with release_json(path) as content:
            rows = list(content.values() if isinstance(content, dict) else content)
            lacking = [row for row in rows if any(not isinstance(row.get(key), columns[key]) for key in columns)]
            if lacking or not rows or not isinstance(content, form):
                example: Row = [*lacking, *rows, {}][0]
                columns_found = ", ".join(f"{key} ({type(value).__name__})" for key, value in example.items())
                raise PowerclipError(
                    f"{path} is {FORMS.get(type(content), 'another value')} of {len(rows)} rows such as: "
                    f"{columns_found}; expected {FORMS[form]} of rows with {', '.join(columns)}; "
                    "is it another release's file?"
                )
        return rows

    def parquet(self, texts: Sequence[str], images: Sequence[str], *, split: str = "") -> list[dict[str, Any]]:
        """The rows of all Parquet files, or of those with a split's name, as the hub stores them:
        texts, and images that are opened when needed.

        PowerclipError if pyarrow is missing, there is no such file, or a column is missing.
        """
        with needs_extra(str(self.folder), "parquet"):
            from pyarrow import ArrowException
        rows: list[dict[str, Any]] = []
        for path in distinct([x for x in self.files("*.parquet") if split in x.name or split == x.parent.name]):
            try:
                with open_parquet(path) as file:
                    if missing := {*texts, *images} - set(file.schema_arrow.names):
                        raise PowerclipError(f"{path} lacks the columns {', '.join(sorted(missing))} of the release")
                    for group in range(file.num_row_groups):
                        for i, row in enumerate(read_group(path, file, group, list(texts))):
                            rows.append(row | {name: TableImage(path, group, i, name) for name in images})
            except (OSError, ArrowException, ValueError) as error:
                raise PowerclipError(f"{path} cannot be read ({error}); download it again") from error
        if not rows:
            raise PowerclipError(
                f"{self.folder} holds no row of a Parquet file{split and f' named {split}'}; download the release's"
            )
        return rows

    def find(self, name: str, *, exact: bool) -> Path | None:
        """A file by name, as ``images`` looks for it;
        None if there is none, PowerclipError if two are equally close."""
        wanted = PurePath(name).parts

        def distance(path: Path) -> tuple[int, int]:
            agreeing = takewhile(lambda pair: pair[0] == pair[1], zip(path.parts[::-1], wanted[::-1], strict=False))
            return -sum(1 for _ in agreeing), len(path.parts)

        near = self._by_folder.get(wanted[-2:], []) if len(wanted) > 1 else []
        found = near if exact and len(wanted) > 1 else near or self._index.get(wanted[-1] if wanted else "", [])
        found = sorted((path for path in found if not exact or path.parts[-len(wanted) :] == wanted), key=distance)
        if len(found) > 1 and distance(found[0]) == distance(found[1]):
            raise PowerclipError(f"{name} is at {found[0]} and {found[1]}; keep one of them under {self.folder}")
        return found[0] if found else None


def distinct(paths: Sequence[Path]) -> list[Path]:
    """The files; PowerclipError if two of them have the same content, which would count twice."""
    by_size = sorted(paths, key=lambda path: path.stat().st_size)
    for _, same in groupby(by_size, key=lambda path: path.stat().st_size):
        for one, other in combinations(same, 2):
            if filecmp.cmp(one, other, shallow=False):
                raise PowerclipError(f"{one} and {other} have the same content; keep one of them")
    return list(paths)


def answerable(name: str, items: Sequence[HardNegative], macro_kinds: frozenset[str] | None = None) -> HardNegatives:
    """The task of the items that have a wrong answer; a warning says how many have none.

    PowerclipError if no item has one, or a kind is called like a metric.
    """
    kept = [item for item in items if item.negatives]
    if not kept:
        raise PowerclipError(f"no item of {name} has a wrong answer; download the data set again")
    if called := {"micro", "macro", "macro-all-kinds"} & {item.kind for item in kept}:
        raise PowerclipError(f"{name} has the kind {min(called)!r}, which is a metric's name; download it again")
    if len(kept) < len(items):
        lacking = f"{len(items) - len(kept)} of {len(items)} items have no wrong answer and are left out"
        warnings.warn(f"{name}: {lacking}", stacklevel=3)
    return HardNegatives(name=name, items=kept, macro_kinds=macro_kinds)


def corners(x: float, y: float, width: float, height: float, *, least: int = 0) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box; ValueError if it is not finite, or a side is shorter than the ``least``."""
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < least:
        raise ValueError(f"a finite box of {least} x {least} or more expected, {[x, y, width, height]} found")
    return x, y, x + width, y + height


def pixel_corners(*sides: Any) -> Box:
    """The corners of a box of one or more complete pixels, of its left, top, width and height."""
    x, y, right, bottom = corners(*(int(float(side)) for side in sides), least=1)
    return int(x), int(y), int(right), int(bottom)


def hard_negatives(
    release: Release,
    rows: Sequence[Row],
    columns: Iterable[str],
    kinds: Sequence[str] | str,
    crops: Sequence[Box] | None = None,
) -> list[HardNegative]:
    """An item of each row; the columns of image, right and wrong caption are named,
    and the kind or that of each row."""
    image, right, wrong = columns
    kinds = [kinds] * len(rows) if isinstance(kinds, str) else kinds
    pictures = release.images([row[image] for row in rows], crops)
    return [
        HardNegative(image=picture, positive=row[right], negatives=[row[wrong]], kind=kind)
        for row, picture, kind in zip(rows, pictures, kinds, strict=True)
    ]


def quadruples(
    release: Release,
    rows: Sequence[Any],
    columns: Iterable[Any],
    kinds: Sequence[str] | None = None,
    *,
    exact: bool = False,
) -> list[Quadruple]:
    """An item of each row; the columns, keys or indices, are those of two images and of their two captions."""
    a, b, first, second = columns
    pictures = release.images([row[image] for row in rows for image in (a, b)], exact=exact)
    return [
        Quadruple(images=(left, right), captions=(row[first], row[second]), kind=kind)
        for row, left, right, kind in zip(rows, pictures[::2], pictures[1::2], kinds or [""] * len(rows), strict=True)
    ]


def release_text(path: Path) -> str:
    """The text of a file of a release, without a byte order mark; PowerclipError if it is unreadable or not UTF-8."""
    try:
        return as_text(path.read_bytes(), str(path))
    except OSError as error:
        raise PowerclipError(f"{path} cannot be read: {error}") from error


def as_text(data: bytes, what: str) -> str:
    """Bytes as the text that they are in UTF-8, with line ends as Python has them; PowerclipError if they are not."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PowerclipError(f"{what} is not UTF-8 ({error}); save it as UTF-8, or download it again") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def release_json(path: Path, form: type = object) -> Iterator[Any]:
    """What is in a JSON file of a release, or the list of the rows of a ``.jsonl`` or ``.csv``.

    PowerclipError if the file cannot be read, holds nothing of the given form, or the block looks for content that it
    does not have.
    """
    text = release_text(path)
    try:
        if path.suffix == ".csv":
            value: Any = list(csv.DictReader(io.StringIO(text, newline="")))
        elif path.suffix.startswith(".jsonl"):
            value = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            value = json.loads(text)
    except (ValueError, csv.Error) as error:
        raise PowerclipError(f"{path} cannot be read: {error}") from error
    with in_format(path):
        if not isinstance(value, form) or not value:
            raise TypeError(f"{form.__name__} expected, {type(value).__name__} of {len(value or ())} found")
        yield value


@contextmanager
def in_format(path: Path) -> Iterator[None]:
    """Makes a PowerclipError of what goes wrong where the block expects a file to have its release's format."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, SyntaxError, OverflowError) as error:
        raise PowerclipError(
            f"{path} does not have its release's format ({type(error).__name__}: {error}); download it again"
        ) from error


def texts_in(value: object) -> list[str]:
    """The texts in a list, or a single one; TypeError if it is something else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a text or a list of texts expected, {str(value)[:40]!r} found")
    return list(texts)


def by_image(rows: Iterable[tuple[str, object]]) -> dict[str, list[str]]:
    """The captions of each image, of rows of an image with a caption or several; TypeError if some are not texts."""
    captions: dict[str, list[str]] = {}
    for image, of_row in rows:
        captions.setdefault(image, []).extend(texts_in(of_row))
    return captions


def refuse(error: OSError) -> None:
    """PowerclipError for a folder that cannot be read: with some images left out, scores would be of other data."""
    raise PowerclipError(
        f"{error.filename or 'a folder'} cannot be read ({error.strerror}); make it readable, or move it away"
    ) from error


def files_below(folder: Path, *, onerror: Callable[[OSError], object] = refuse) -> list[Path]:
    """The files in and below a folder, links followed, sorted, without hidden ones.

    ``onerror`` gets the error of each folder that cannot be read.
    """

    def hidden(path: Path) -> bool:
        return any(map(is_hidden, path.relative_to(folder).parts))

    def failed(error: OSError) -> None:
        if not hidden(Path(error.filename or folder)):
            onerror(error)

    return [path for path in walk(folder, onerror=failed)[0] if not hidden(path)]


def children(folder: Path) -> list[Path]:
    """The files and folders in a folder, by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no part of a release; macOS adds one to archives, Linux one to disks."""
    return name.startswith(".") or name in ("__MACOSX", "lost+found")
