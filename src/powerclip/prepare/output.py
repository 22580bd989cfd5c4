"""The folder that a job writes to: which job it belongs to, which shards are finished, and what a killed job left."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from powerclip.data.shards import PLAN, REPORT
from powerclip.errors import PowerclipError
from powerclip.files import make_folder, read_json, require_writable, write_json

LOCK = ".lock"
TEMPORARY = (".shard-*.tmp", ".captions.db.tmp*", f"{PLAN}.*.tmp", f".{REPORT}.*.tmp")
"""Files of a job while they are being written."""


@contextmanager
def reserved(output: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Reserve a folder, created if necessary, for one job; what a killed job left is removed before and after.

    PowerclipError if the folder holds something else, or shards of another plan (what determines their bytes), or
    another job is running in it.
    """
    if output.exists() and not output.is_dir():
        raise PowerclipError(f"output {output} is a file; name a folder")
    require_writable(output)
    known = {*_unfinished(output), output / LOCK}
    if output.is_dir() and not (output / PLAN).exists() and set(output.iterdir()) - known:
        raise PowerclipError(f"output {output} is not empty and was not made by this command; name an empty folder")
    make_folder(output)
    try:
        with FileLock(output / LOCK, timeout=0):
            _clear(output)
            _claim(output / PLAN, plan)
            try:
                yield
            finally:
                _clear(output)
    except Timeout as error:
        raise PowerclipError(f"another job is writing to {output}; wait for it, or end it") from error


def _clear(output: Path) -> None:
    for path in _unfinished(output):
        path.unlink(missing_ok=True)


def _unfinished(output: Path) -> set[Path]:
    return {path for pattern in TEMPORARY for path in output.glob(pattern)}


def _claim(mark: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan into a new folder, or compare it with that of the shards in it."""
    if not mark.exists():
        write_json(mark, plan)
        return
    try:
        noted = read_json(mark)
        changed = [name for name in {**noted, **plan} if noted.get(name) != plan.get(name)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        what = f"{mark}, which says what the shards next to it were made from,"
        raise PowerclipError(f"{what} cannot be read ({error}); name an empty folder") from error
    if changed:
        settings = "; ".join(f"{name} was {noted.get(name)}, now {plan.get(name)}" for name in changed)
        of_another = "of another source, or the source has changed or moved"
        why = of_another if "source" in changed else f"made with other settings ({settings})"
        raise PowerclipError(f"{mark.parent} holds shards {why}; name an empty folder, or remove this one")


def counts_of(shard: Path) -> Path:
    """The file with the counts of a shard; it is written after the shard and marks it as finished."""
    return shard.with_name(f".{shard.stem}.json")


def read_finished(shard: Path) -> dict[str, Any] | None:
    """The counts of a finished shard, or of one known to be empty; None if it has to be made."""
    try:
        counts: dict[str, Any] = read_json(counts_of(shard))
        return counts if shard.exists() or counts["samples"] == 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
