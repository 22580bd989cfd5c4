"""The run folder: whose it is, what may differ when a run is resumed in it, and how far it has come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from powerclip.config import TrainConfig, load_config, to_yaml
from powerclip.distributed import first_says, is_shared, rank, wait_for_all
from powerclip.errors import PowerclipError
from powerclip.train import checkpoint

FREE = frozenset(
    {
        "device",
        "log_every_steps",
        "checkpoint_every_steps",
        "checkpoint_every_minutes",
        "keep_checkpoints",
        "parallel",
        "evaluation",
        "wandb_project",
        "data.workers",
        "data.max_bad_share",
        "data.cache",
        "data.cache_gib",
    }
)
"""Settings that may change when a run is resumed: they do not decide what is learnt."""

TOLD = frozenset({"steps", "epochs", "optim.learning_rate", "optim.warmup_steps", "optim.max_gradient_norm"})
"""Settings that may change too, as a run may have to be mended or made longer; that is said."""


def check_folder(output: Path, config: TrainConfig, *, resume: bool) -> str:
    """See that a run can begin in a folder, or go on; nothing is written.

    Returns:
        The settings that are not those it began with and decide what is learnt from here on, in words; empty where
        there are none.

    Raises:
        PowerclipError: it is a file, holds something else, or a run with other settings.
    """
    if output.exists() and not output.is_dir():
        raise PowerclipError(f"output {output} is a file; name a folder for the run")
    if not output.is_dir() or not any(output.iterdir()):
        return ""
    saved = output / "config.yaml"
    if not resume:
        raise PowerclipError(f"output {output} is not empty; add --resume auto to go on, or name another folder")
    if not saved.exists():
        raise PowerclipError(f"output {output} holds no run (no config.yaml) and is not empty; name another folder")
    if checkpoint.latest(output / "checkpoints") is None:
        return ""
    changed = {name: pair for name, *pair in _changes(load_config(saved), config) if _allowed(name, FREE) is None}
    words = {name: f"{name}: {old!r} then, {new!r} now" for name, (old, new) in changed.items()}
    refused = [text for name, text in words.items() if _allowed(name, TOLD) is None]
    if refused:
        raise PowerclipError(
            f"{output} was trained with other settings ({', '.join(refused)}); use those to resume it, or name another "
            "folder"
        )
    return ", ".join(words.values())


def open_folder(output: Path, config: TrainConfig, *, resume: bool) -> Path | None:
    """Make the run folder, with its config where it is new; return the checkpoint to resume from, of all processes.

    Raises:
        PowerclipError: the processes do not share the folder.
    """
    found = checkpoint.latest(output / "checkpoints") if resume else None
    wait_for_all()  # all have looked before one writes
    if rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        if found is None:
            write_config(output, config)
    wait_for_all()
    if not is_shared(output):
        raise PowerclipError(f"output {output} is not the same folder on all nodes; name one on a disk that they share")
    step = first_says(-1 if found is None else checkpoint.step_of(found))
    return None if step < 0 else checkpoint.place(output / "checkpoints", step)


def write_config(output: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``, all of it."""
    if rank() == 0:
        _write(output / "config.yaml", to_yaml(config))


def write_status(output: Path, *, step: int, steps: int) -> None:
    """Note how far a run has come, for scripts that start it again: ``{"step": 3, "steps": 9, "finished": false}``."""
    if rank() == 0:
        _write(output / "status.json", json.dumps({"step": step, "steps": steps, "finished": step >= steps}) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _changes(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of each setting that differs."""
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(after):
            yield from _changes(before, after, f"{prefix}{field.name}.")
        elif before != after:
            yield f"{prefix}{field.name}", before, after


def _allowed(name: str, names: frozenset[str]) -> str | None:
    """The one of some names that a setting is, or lies within."""
    return next((allowed for allowed in names if f"{name}.".startswith(f"{allowed}.")), None)
