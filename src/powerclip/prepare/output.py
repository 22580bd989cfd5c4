"""The folder that a job writes to: which job it belongs to, which shards are finished, and what a killed one left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from powerclip.errors import PowerclipError

REPORT = "report.json"
PLAN = ".source.json"
LOCK = ".lock"
TEMPORARY = (".shard-*.tmp", f"{PLAN}.tmp", f".{REPORT}.tmp")
"""Files of a job while they are written."""


@contextmanager
def reserved(output: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Keep a folder to one job; what a killed one left half written is cleared before and after.

    Args:
        output: made where it is not there.
        plan: what decides the shards' bytes, as JSON; a job of another plan is refused.

    Raises:
        PowerclipError: the folder holds something else, shards of another plan, or another job is at work.
    """
    if output.exists() and not output.is_dir():
        raise PowerclipError(f"output {output} is a file; name a folder")
    if output.is_dir() and not _is_ours(output):
        raise PowerclipError(f"output {output} is not empty and was not made by this command; name an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            _clear(output)
            _claim(output / PLAN, plan)
            try:
                yield
            finally:
                _clear(output)
    except Timeout as error:
        raise PowerclipError(f"another powerclip prepare is writing to {output}; wait for it, or end it") from error


def _is_ours(output: Path) -> bool:
    """Whether a folder was made by this command, or is as good as empty."""
    if (output / PLAN).exists():
        return True
    left = {path for pattern in (LOCK, *TEMPORARY) for path in output.glob(pattern)}
    return all(path in left for path in output.iterdir())


def _clear(output: Path) -> None:
    for pattern in TEMPORARY:
        for path in output.glob(pattern):
            path.unlink(missing_ok=True)


def _claim(mark: Path, plan: Mapping[str, Any]) -> None:
    """Note the plan of a new folder, or compare it with that of the shards that are there."""
    if not mark.exists():
        write_json(mark, plan)
        return
    try:
        noted = json.loads(mark.read_text(encoding="utf-8"))
        changed = [name for name in {**noted, **plan} if noted.get(name) != plan.get(name)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PowerclipError(
            f"{mark}, which tells what the shards beside it are made of, cannot be read ({error}); name an empty folder"
        ) from error
    if "source" in changed:
        raise PowerclipError(f"{mark.parent} holds shards of another source, or of a changed one; name an empty folder")
    if changed:
        settings = "; ".join(f"{name} {noted.get(name)}, now {plan.get(name)}" for name in changed)
        raise PowerclipError(f"{mark.parent} holds shards made otherwise ({settings}); name an empty folder")


def counts_of(shard: Path) -> Path:
    """Where the counts of a shard stand; written after the shard, they say that it is finished."""
    return shard.with_name(f".{shard.stem}.json")


def read_finished(shard: Path) -> dict[str, Any] | None:
    """The counts of a shard that is there, or that is known to hold nothing; None where it has to be made."""
    try:
        counts: dict[str, Any] = json.loads(counts_of(shard).read_text(encoding="utf-8"))
        return counts if shard.exists() or counts["samples"] == 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole when it is there, after a power cut too."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.tmp")
    with temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
