"""Tables of text: CSV, TSV and JSONL.

A table is walked through once to find where its chunks begin; each chunk then reads its own rows, so that a table of
millions of rows is never held in memory. Both go by the same iterators, and so agree on what a row is.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from powerclip.errors import PowerclipError
from powerclip.prepare.source import Source, digest
from powerclip.prepare.tables import Row, TableChunk, find_columns

MAX_ROW_BYTES = 2**24
"""A longer row is none."""

MAX_CELL = 2**20
"""Characters: what a quote that is never closed can swallow of a CSV file."""

PROBED = 100
"""Rows of a JSONL file whose keys are its columns."""

LINE_BREAK = "line break inside a quoted cell, which a TSV cannot hold"

Cells = list[str] | str
"""A row's cells, or why it is none."""


def open_lines(path: Path, samples_per_shard: int, *, image_column: str | None, caption_column: str | None) -> Source:
    """The pairs of a CSV, TSV or JSONL file; relative paths count from its folder.

    Raises:
        PowerclipError: it cannot be read, has no row, or its columns cannot be told.
    """
    try:
        header, columns, offsets, rows = _scan(path, samples_per_shard)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise PowerclipError(f"cannot read the table {path}: {error}") from error
    if not rows:
        raise PowerclipError(f"{path} has no row")
    image, caption = find_columns(path, columns, image_column, caption_column)
    chunks = []
    for number, offset in enumerate(offsets):
        first = number * samples_per_shard
        part = _TextRows(path, offset, min(samples_per_shard, rows - first), header)
        chunks.append(TableChunk(rows=part, first=first, image=image, caption=caption, folder=path.parent))
    return Source(chunks=chunks, fingerprint=digest([content, image, caption]))


class Lines:
    """Lines of a file as text; bytes that are no UTF-8 come through as surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, file.tell()
        self.begin = self.position
        """Where the row at hand begins."""

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        if self.position == 0:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError("it is UTF-16; save it as UTF-8")
            if b"\r" in line.rstrip(b"\r\n"):
                raise ValueError("its lines end in CR alone; save it with LF or CR LF")
        text = line.removeprefix(b"\xef\xbb\xbf") if self.position == 0 else line
        self.position += len(line)
        if self.position - self.begin >= MAX_ROW_BYTES:
            raise csv.Error("row too long")
        return text.decode("utf-8", errors="surrogateescape")

    def next_row(self) -> None:
        """The row at hand is read; another begins."""
        self.begin = self.position

    def pass_over(self) -> int:
        """Go on behind the first line of the row at hand; the bytes of that line."""
        self.file.seek(self.begin)
        while (piece := self.file.readline(MAX_ROW_BYTES)) and not piece.endswith(b"\n"):
            pass
        self.position = self.file.tell()
        return self.position - self.begin


def json_lines(lines: Lines) -> Iterator[tuple[int, str | None]]:
    """Offset and text of each line that is not blank; None for one that is too long."""
    while True:
        lines.next_row()
        try:
            line = next(lines, None)
        except csv.Error:
            lines.pass_over()
            yield lines.begin, None
            continue
        if line is None:
            return
        if line.strip():
            yield lines.begin, line


def comma_rows(lines: Lines) -> Iterator[tuple[int, Cells]]:
    """Offset and cells of each row of a CSV file.

    Where the quotes of a row do not match, its first line alone is none, and reading goes on at the next one.
    """
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.next_row()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if lines.pass_over() > MAX_CELL:
                yield lines.begin, "line too long"
            else:
                yield lines.begin, "line holds a CR" if "new-line" in str(error) else "quotes do not match"
            continue
        if cells is None:
            return
        if cells:
            yield lines.begin, cells


def tab_rows(lines: Lines, width: int) -> Iterator[tuple[int, Cells]]:
    """Offset and cells of each line of a TSV file; with the lines that a quoted cell goes on in, it is no row.

    Quotes are the captions' own, save where they enclose a cell and are doubled within. So a quote that is opened and
    not closed is no fault by itself, unless the next line closes it or is too short to be a row.

    Args:
        lines: where reading begins.
        width: cells of a whole row.
    """
    row: tuple[int, Cells] | None = None
    opened = False
    for place, line in json_lines(lines):
        cells = _split(line or "")
        closes = cells[0].count('"') % 2 == 1 and not cells[0].startswith('"')
        if row is not None and opened and line is not None and (closes or len(cells) < width):
            row, opened = (row[0], LINE_BREAK), not closes
            continue
        if row is not None:
            yield row
        row = place, "line too long" if line is None else _unquoted(cells)
        opened = cells[-1].startswith('"') and cells[-1].count('"') % 2 == 1
    if row is not None:
        yield row


def _split(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _unquoted(cells: list[str]) -> list[str]:
    """Cells without the quotes that enclose some of them."""
    return [
        cell[1:-1].replace('""', '"')
        if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
        else cell
        for cell in cells
    ]


def _scan(path: Path, step: int) -> tuple[tuple[str, ...] | None, Sequence[str], list[int], int]:
    """Header (None for JSONL), columns, the offset of each chunk's first row, and the number of rows."""
    offsets: list[int] = []
    rows = 0
    with path.open("rb") as file:
        lines = Lines(file)
        header = _header(lines, path.suffix.lower())
        keys: dict[str, None] = {}
        for place, row in _rows(lines, path.suffix.lower(), header):
            if rows % step == 0:
                offsets.append(place)
            if header is None and rows < PROBED and isinstance(first := _json_row(row), dict):
                keys |= dict.fromkeys(first)
            rows += 1
    if header is None and rows and not keys:
        raise ValueError(f"none of its first {min(rows, PROBED)} lines is a JSON object")
    return header, header or tuple(keys), offsets, rows


def _header(lines: Lines, suffix: str) -> tuple[str, ...] | None:
    if suffix == ".jsonl":
        return None
    cells: Cells
    if suffix == ".csv":
        _, cells = next(comma_rows(lines), (0, []))
    else:  # tab_rows looks ahead
        _, line = next(json_lines(lines), (0, ""))
        cells = "line too long" if line is None else _unquoted(_split(line))
    if isinstance(cells, str):
        raise ValueError(f"its first line should name the columns, but: {cells}")
    if len(cells) == 1 and any(separator in cells[0] for separator in "\t;,|"):
        raise ValueError(f"its first line is one column, {cells[0][:80]!r}; CSV is separated by commas, TSV by tabs")
    return tuple(cells)


def _rows(lines: Lines, suffix: str, header: Sequence[str] | None) -> Iterator[tuple[int, Any]]:
    if header is None:
        return json_lines(lines)
    return comma_rows(lines) if suffix == ".csv" else tab_rows(lines, len(header))


@dataclass(frozen=True)
class _TextRows:
    """Rows of a CSV, TSV or JSONL file, from a byte on."""

    path: Path
    offset: int
    count: int
    header: tuple[str, ...] | None
    """None for JSONL."""

    def read(self) -> Iterator[Row | str]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for _, row in islice(_rows(Lines(file), self.path.suffix.lower(), self.header), self.count):
                yield _json_row(row) if self.header is None else _named(row, self.header)


def _named(cells: Cells, header: Sequence[str]) -> Row | str:
    if isinstance(cells, str):
        return cells
    row: dict[str | None, str | list[str]] = dict(zip(header, cells, strict=False))
    return row if len(cells) <= len(header) else {**row, None: cells[len(header) :]}


def _json_row(line: str | None) -> Row | str:
    if line is None:
        return "line too long"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "line is no JSON"
    return row if isinstance(row, dict) else "line is no JSON object"
