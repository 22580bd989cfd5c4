"""The rows of text files: CSV, TSV and JSONL, in bounded memory, whatever their cells hold."""

import ast
import csv
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.data.limits import MAX_ANNOTATION_BYTES, MAX_CAPTIONS

SEPARATORS = {".csv": ",", ".tsv": "\t"}

MAX_LINE = 2**24
"""A longer line of a text file, in characters, is read as several."""

MAX_CELL = 2**20
"""A cell of a CSV or TSV file has at most this many characters: an unclosed quote cannot take more."""

MAX_VALUES = 16 * MAX_CAPTIONS
"""Values in the cells of a row of a JSONL file, those in lists and objects included."""

MAX_DEPTH = 8
"""How deep these are nested."""

NAME_CELL = re.compile(rf"(?:^|,)[^,\"\n]*(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})\s*(?:,|$)", re.IGNORECASE)
"""An image's name as a cell of its own."""

BEHIND = re.compile('(?<!")(?:"")*"(?!").*', re.DOTALL)
"""What a line holds from the end of a quoted cell on that began before; quotes in a cell are doubled."""

PROBED = 100
"""The columns of a JSONL file are the keys of its first lines, this many."""

Row = tuple[Any, ...] | str
"""Some cells of a row, the image first and its captions behind; or why the row is not usable."""


def text_rows(path: Path, *, header: bool) -> tuple[list[str], Iterator[Sequence[Any] | str]]:
    """The columns of a text file, numbers without a header, and its rows; for a row that cannot be read, the reason."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is UTF-16; save it as UTF-8")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = (_json_row(line) for line in _read_lines(path) if line.strip())
        first = list(islice(rows, PROBED))
        keys = dict.fromkeys(key for row in first if not isinstance(row, str) for key in row)
        if first and not keys:
            raise ValueError(f"none of its first {len(first)} lines is a JSON object")
        columns = list(keys)
        return columns, (
            row if isinstance(row, str) else [row.get(name) for name in columns] for row in chain(first, rows)
        )
    cells = separated_rows(_read_lines(path), SEPARATORS[suffix])
    top = next(cells, [])
    if isinstance(top, str):
        raise ValueError(f"its first line should name the columns, but: {top}" if header else f"its first line: {top}")
    if len(top) == 1 and any(separator in top[0] for separator in "\t;,|"):
        raise ValueError(f"its first line is one column, {top[0][:80]!r}; CSV is separated by commas, TSV by tabs")
    if header:
        return top, (_full(row, len(top)) for row in cells)
    return [str(i + 1) for i in range(len(top))], (_full(row, len(top)) for row in chain([top] * bool(top), cells))


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a file without byte order marks, of which files put together have several; bytes that are not UTF-8
    become surrogates."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for line in iter(partial(file.readline, MAX_LINE), ""):
            yield line.removeprefix("\ufeff")


def separated_rows(lines: Iterable[str], separator: str) -> Iterator[list[str] | str]:
    """The cells of each row of a CSV or TSV file; for a row that cannot be read, the reason.

    If the quotes of a row do not match, its first line alone is affected: in a CSV it is skipped, and in a TSV, where
    captions often hold bare quotes, it is split at its tabs. Reading continues at the next line. Spaces before a cell
    of a CSV do not count.
    """
    csv.field_size_limit(MAX_CELL)
    unread = iter(lines)
    again: list[str] = []  # lines to read again, the next one last
    used: list[str] = []  # by this row

    def take() -> Iterator[str]:
        while line := again.pop() if again else next(unread, ""):
            used.append(line)
            yield line

    form: dict[str, Any] = {"delimiter": separator, "strict": True, "skipinitialspace": separator == ","}
    reader = csv.reader(take(), **form)
    width = 0
    while True:
        used.clear()
        try:
            cells = next(reader, None)
            # A quote that spans several complete rows is not that of a cell. Captions hold commas, too, so that in a
            # CSV a line is a row only if an image's name is one of its cells, and within the quotes.
            if separator == ",":
                matched = len(used) < 2 or not any(
                    line.count(",") >= width - 1 > 0 and NAME_CELL.search(quoted)
                    for line, quoted in zip(used, _quoted(used), strict=True)
                )
            else:
                matched = len(used) < 2 or "".join(used).count(separator) < width
        except csv.Error:
            cells, matched = [], False
        if cells is None:
            return
        row: list[str] | str = cells
        if not matched:
            again += reversed(used[1:])
            reader = csv.reader(take(), **form)  # the other may have come to the end
            if len(used[0]) > MAX_CELL:
                row = "line too long"
            else:
                row = "quotes do not match" if separator == "," else used[0].rstrip("\r\n").split(separator)
        if len(row) > 1 or any(cell.strip() for cell in row):
            width = width or len(row)
            yield row


def _quoted(lines: Sequence[str]) -> list[str]:
    """What each line of a row holds of the quoted cells that have several of them."""
    return [lines[0].rpartition('"')[2], *(BEHIND.sub("", line, count=1) for line in lines[1:])]


def _full(cells: list[str] | str, columns: int) -> Sequence[Any] | str:
    """A row of as many cells as there are columns."""
    if isinstance(cells, str):
        return cells
    if len(cells) > columns:
        return "more fields than columns (quote captions that hold the separator)"
    return [*map(_listed, cells), *[None] * (columns - len(cells))]


def _listed(cell: str) -> Any:
    """The texts in a cell that is written as a list of texts, as JSON or as Python writes them; else the cell."""
    if not (cell.startswith("[") and cell.endswith("]") and len(cell) <= MAX_ANNOTATION_BYTES):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes that are none
                found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return cell
    texts = isinstance(found, list) and bool(found) and all(isinstance(text, str) for text in found)
    return found if texts else cell


def is_small(cells: Row) -> bool:
    """Whether the values in some cells are few, and not nested deeply: the rows of a chunk are held in memory."""
    level: list[Any] = list(cells) if isinstance(cells, tuple) else []
    left = MAX_VALUES
    for _ in range(MAX_DEPTH):
        left -= len(level)
        nested = (list(value.values()) if isinstance(value, dict) else value for value in level)
        level = [x for values in nested if isinstance(values, list) for x in values]
    return left >= 0 and not level


def _json_row(line: str) -> Mapping[str, Any] | str:
    if len(line) > MAX_ANNOTATION_BYTES:
        return "line too long"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "line is not JSON"
    return row if isinstance(row, dict) else "line is not a JSON object"
