"""New captions for images in shards: the rows of a table are joined to them; images are copied, not decoded."""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from powerclip.config import PrepareConfig
from powerclip.config.values import Join
from powerclip.data.sample import CAPTION_EXTENSION, CAPTIONS_EXTENSION, Caption, Sample
from powerclip.data.shards import BrokenShardError, SamplePlace, find_shards, stream_shard
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare.pairs import HASHED, Item, Loaded, Source, digest, read_captions, require_read, shown_name, stamp
from powerclip.prepare.tables import find_columns, read_table, table_files, table_options
from powerclip.prepare.tars import sample_items
from powerclip.prepare.text_rows import Row

JOINED = MATCHED, MISSING, AMBIGUOUS = "matched", "missing in the table", "ambiguous in the table"
"""What becomes of a sample."""
SHARED = "has the key of another sample"
"""Or this."""
COLUMNS: dict[Join, tuple[str, ...]] = {
    "key": ("key", "__key__", "image_id", "id"),  # COCO's "id" is that of a caption
    "url": ("url", "image_url", "image", "href"),
}
"""Well-known columns that a table is joined by."""
DATABASE = ".captions.db.tmp"
"""The table by names, in the output folder while the job runs."""
PROBED = 1000
"""If none of this many samples is in the table, the join is wrong."""
ROW_NUMBER = re.compile(r"\d{8}[-+]")
"""How keys begin that ``make_key`` wrote, for images of a folder or table, and for odd names in tars."""
FILE = "\n"
"""How names of files begin among those of keys, which never do."""
BARE = FILE + "/"
"""How those begin that the table gives without a folder, whatever the folder of the sample."""
KNOWN = {CAPTION_EXTENSION, CAPTIONS_EXTENSION, "json", "phrases.json", "regions.json"}
"""Files of a sample that are written from what they hold; others are copied."""


class _Table(NamedTuple):
    """A file of the table."""

    column: str
    """Name of the one it is joined by."""
    sources: list[str]
    """Names of the columns of captions."""
    rows: Callable[[], Iterator[Row]]
    """Reads the name in each row, and its captions."""


def open_join(path: Path, config: PrepareConfig, output: Path) -> Source:
    """The samples of shards with further captions from the table ``config.captions``; one chunk for each shard.

    A sample keeps its key and the captions that it has. If several rows with different captions have its name, or
    another sample has its key, it gets none of them.
    The table is written to a database in ``output`` when the chunks are first asked for. PowerclipError if there are no
    shards, the table or its columns cannot be read, or no row fits the first samples.
    """
    assert config.captions is not None
    if config.regions != "boxes":
        raise PowerclipError(f"--captions keeps the regions of {path}; leave out --regions {config.regions}")
    shards, table, join = find_shards(path), Path(config.captions).absolute(), config.join
    require_read(config, f"{path} with --captions {table}", "join", "join_column", *table_options(table))
    files = table_files(table)
    tables = [_table(file, config) for file in files]
    columns = list(dict.fromkeys(table.column for table in tables))
    ignored = Counter[str]()

    def chunks() -> Iterator[Callable[[], Iterator[Item]]]:
        database = output / DATABASE
        keys = _names(shards, join) if join == "key" else ()  # one URL is one image
        _fill(database, tables, keys, join=join, ignored=ignored)
        _probe(shards, table, database, join)
        yield from (partial(joined_items, shard, database, join, config.caption_lines) for shard in shards)

    return Source(
        chunks=chunks(),
        count=len(shards),
        fingerprint=digest(
            (f"{file.name} {stamp(file)}" for file in (*shards, *files)),
            [
                join,
                *columns,
                f"{config.join_column}",
                f"{config.header}",
                *(name for table in tables for name in table.sources),
            ],
        ),
        ignored=ignored,
        choice=f"joined by the column {', '.join(columns)}",
    )


def joined_items(shard: Path, database: Path, join: Join, lines: bool) -> Iterator[Item]:
    """The samples of a shard, in order, each with the captions that the table has for it."""
    with closing(_connect(database)) as rows:
        load = partial(_load, rows=rows, join=join, lines=lines)
        yield from sample_items(shard, load, lambda entry: entry.members)


def join_name(value: Any, join: Join) -> str:
    """A key or URL in the form in which they are compared; "" if there is none.

    Of a key, the characters up to the first dot after the last slash count, and a "./" and leading zeros of a number
    do not. Of a URL, the scheme, the case of the host, escapes (%20), a standard port, the fragment and a slash at the
    end do not.
    """
    text = _stripped(value)
    if join == "key":
        folder, slash, name = text.removeprefix("./").rpartition("/")
        return folder + slash + _without_zeros(name.partition(".")[0])
    try:
        url = urlsplit(text)
    except ValueError:
        return text
    if not url.netloc:
        return text
    host = re.sub(r":(80|443)$", "", url.netloc.lower())
    return unquote(f"{host}{url.path.rstrip('/')}{'?' * bool(url.query)}{url.query}")


def file_names(value: Any) -> list[str]:
    """The names of samples that a file in the table may be, as ``names_in`` has them: with and without its folder."""
    path = Path(_stripped(value))
    shown, bare = shown_name(str(path)), shown_name(path.name)
    names = [shown, bare] if shown != bare else [bare]
    return [*(FILE + _without_zeros(name) for name in names), *([BARE + _without_zeros(bare)] if shown == bare else [])]


def names_in(key: str) -> list[str]:
    """The names of the file that a key of ``make_key``'s shows, the best first; leading zeros of a number are left out.

    A file in a folder is found without it, too, if all else of its name is in the key.
    """
    shown = key[9:]
    bare, _, hashed = shown.rpartition(HASHED)
    return [FILE + _without_zeros(shown), *([BARE + _without_zeros(bare)] if hashed else [])]


def _stripped(value: Any) -> str:
    return "" if value is None else _text(value).encode("utf-8", "replace").decode().strip()


def _without_zeros(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdecimal() else name


def _table(file: Path, config: PrepareConfig) -> _Table:
    columns, read = read_table(file, config)
    places = find_columns(file, columns, config, config.join_column, COLUMNS[config.join], "join-column")
    return _Table(columns[places[0]], [columns[i] for i in places[1:]], partial(read, places))


def _fill(
    database: Path, tables: Iterable[_Table], keys: Iterable[list[str]], *, join: Join, ignored: Counter[str]
) -> None:
    """Write the rows of the table by name, and the keys that several samples have; rows without name are counted."""

    def rows(*, numbered: bool) -> Iterator[tuple[str, str]]:
        for table in tables:
            for row in table.rows():
                if isinstance(row, str):
                    ignored[f"row of the table: {row}"] += 1
                elif name := join_name(row[0], join):
                    cells = json.dumps(list(zip(table.sources, row[1:], strict=True)), default=_text)
                    yield name, cells
                    if numbered and not ROW_NUMBER.match(name):
                        yield from ((name, cells) for name in file_names(row[0]))
                else:
                    ignored[f"row of the table without {join}"] += 1

    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE samples (name TEXT)")
        connection.executemany("INSERT INTO samples VALUES (?)", ((key,) for names in keys for key in names))
        numbered = connection.execute("SELECT 1 FROM samples WHERE name >= ? AND name < ?", [FILE, " "]).fetchone()
        connection.execute("CREATE TABLE captions (name TEXT, cells TEXT)")
        connection.executemany("INSERT INTO captions VALUES (?, ?)", rows(numbered=numbered is not None))
        connection.execute("CREATE INDEX by_name ON captions (name)")
        connection.execute("CREATE TABLE shared AS SELECT name FROM samples GROUP BY name HAVING COUNT(*) > 1")
        connection.execute("CREATE INDEX by_key ON shared (name)")
        connection.execute("DROP TABLE samples")
        connection.commit()


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro&immutable=1", uri=True)


def _probe(shards: list[Path], table: Path, database: Path, join: Join) -> None:
    """Check that one of the first samples gets captions from the table."""
    samples = list(islice(_names(shards, join), PROBED))
    with closing(_connect(database)) as rows:
        outcomes = Counter(_find(rows, names)[0] for names in samples)
        (theirs,) = rows.execute("SELECT name FROM captions ORDER BY rowid LIMIT 1").fetchone() or ("nothing",)
    if outcomes[MATCHED]:
        return
    none = f"none of the first {len(samples)} samples with a {join}"
    if outcomes[AMBIGUOUS] > outcomes[SHARED]:
        several = f"{outcomes[AMBIGUOUS]} have several rows with different captions; put these into one row, as a list"
        raise PowerclipError(f"{none} gets a caption from {table}: {several}")
    if outcomes[SHARED]:
        shared = f"{outcomes[SHARED]} have the key of another sample; give each one of its own"
        raise PowerclipError(f"{none} gets a caption from {table}: {shared}")
    ours = " or ".join(repr(name.removeprefix(FILE)) for name in (samples or [["nothing"]])[0])
    raise PowerclipError(
        f"{none} is in {table}: a sample has {ours}, the table {theirs!r}; "
        f"join by --join {'url' if join == 'key' else 'key'}, or name the column with --join-column"
    )


def _names(shards: Iterable[Path], join: Join) -> Iterator[list[str]]:
    """The names of the samples that have one, in order; what cannot be read is left out."""
    for shard in shards:
        with suppress(BrokenShardError):
            for place in stream_shard(shard):
                with suppress(BadSampleError, ValueError, RecursionError):
                    known = json.loads(place.files(only=("json",)).get("json", b"{}")) if join == "url" else {}
                    if names := _names_of(place.key, known, join):
                        yield names


def _names_of(key: str, known: Any, join: Join) -> list[str]:
    """What a sample is joined by, the best first, given its key and what is known of it; nothing if it has none."""
    if join == "key":
        return [join_name(key, join), *(names_in(key) if ROW_NUMBER.match(key) else [])]
    name = join_name(known.get("url"), join) if isinstance(known, Mapping) else ""
    return [name] if name else []


def _find(rows: sqlite3.Connection, names: Iterable[str]) -> tuple[str, str]:
    """What becomes of a sample with some names, the first of which that has a row counts; and the captions it gets."""
    for name in names:
        found = rows.execute("SELECT DISTINCT cells FROM captions WHERE name = ? LIMIT 2", [name]).fetchall()
        if found and rows.execute("SELECT 1 FROM shared WHERE name = ?", [name]).fetchone():
            return SHARED, "[]"
        if found:
            return (MATCHED, found[0][0]) if len(found) == 1 else (AMBIGUOUS, "[]")
    return MISSING, "[]"


def _load(_key: str, entry: SamplePlace, *, rows: sqlite3.Connection, join: Join, lines: bool) -> Loaded:
    files = entry.files(only=entry.members)
    sample = Sample.from_members(entry.key, files)
    extra = {name: data for name, data in files.items() if name not in {sample.image_extension, *KNOWN}}
    sample = replace(sample, extra=extra)
    outcome, cells = _find(rows, _names_of(entry.key, sample.metadata, join))
    remarks = [*sample.remarks, outcome]
    captions: list[Caption] = []
    if outcome == MATCHED:
        try:
            captions, more = read_captions(map(tuple, json.loads(cells)), lines=lines)
            remarks += more
        except BadSampleError as error:
            remarks.append(str(error))
    known = {(caption.source, caption.text) for caption in sample.captions}
    new = [caption for caption in captions if (caption.source, caption.text) not in known]
    return replace(sample.with_captions([*sample.captions, *new]), remarks=tuple(remarks)), None
