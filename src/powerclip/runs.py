"""The run folder: the names of its files, what may differ when a run is resumed in it, and its readers."""

import dataclasses
import json
import math
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from powerclip.config import TrainConfig, from_dict, load_config, to_yaml
from powerclip.distributed import broadcast, is_shared, rank, rank0_first, wait_for_all
from powerclip.errors import PowerclipError
from powerclip.files import atomic_write, make_folder, read_json, require_writable, write_json
from powerclip.types import DataProvenance

MAY_CHANGE_ON_RESUME = frozenset(
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
"""Settings, or groups of them, that may change when a run is resumed: they do not decide what is learnt."""

MAY_CHANGE_AND_IS_REPORTED = frozenset(
    {"steps", "epochs", "optim.learning_rate", "optim.warmup_steps", "optim.max_gradient_norm"}
)
"""Settings that may change too, since a run may have to be fixed or made longer; the change is reported."""

LOCK_WAIT_S = 6.0
"""How long a start waits for another training in the same folder: loader workers outlive a killed one by 5 s."""


class RunFolder:
    """A run folder: where everything in it is, who may train in it, and what it says about its run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        """All settings."""
        self.data_file = self.path / "data.json"
        """The data it was trained on; missing in runs made before powerclip recorded them."""
        self.status_file = self.path / "status.json"
        """How far it has come, for scripts that restart it: ``{"step": 3, "steps": 9, "finished": false}``; finished is
        when its last evaluation and its models are written, too."""
        self.metrics_file = self.path / "metrics.jsonl"
        """One JSON object per line, with "step"."""
        self.bad_batches_file = self.path / "bad_batches.jsonl"
        """The keys of the samples in steps that were skipped."""
        self.checkpoints = self.path / "checkpoints"
        """Holds ``step-XXXXXXXX`` folders, each complete as soon as it exists."""
        self.model = self.path / "model"
        """What ``powerclip.load`` takes."""
        self.model_ema = self.path / "model_ema"
        """The same with averaged weights, if the config asks for them."""
        self.model_best = self.path / "model_best"
        """The model of the best evaluation in training, with that evaluation."""
        self.evaluation_file = self.path / "evaluation.json"
        """The results of ``powerclip evaluate``."""
        self.lock_file = self.path / ".lock"
        """Locked while a training writes to the folder; names its process."""

    def check(self, config: TrainConfig, *, resume: bool) -> str:
        """Check, without writing, that a run can start here, or continue; PowerclipError if not.

        Returns in words which settings that decide what is learnt have changed since the run started; else empty.
        """
        output = self.path
        if output.exists() and not output.is_dir():
            raise PowerclipError(f"output {output} is a file; name a folder for the run")
        require_writable(output)
        if not output.is_dir() or not set(output.iterdir()) - {self.lock_file}:
            return ""
        if not resume:
            raise PowerclipError(
                f"output {output} is not empty; add --resume auto to continue its run, or name another folder"
            )
        if not self.config_file.exists():
            raise PowerclipError(f"output {output} holds no run (no config.yaml) and is not empty; name another folder")
        if not self.has_trained():
            return ""
        changes, refused = [], []
        for name, old, new in _changes(self.config(), config):
            if not MAY_CHANGE_ON_RESUME & {name, name.split(".")[0]}:
                changes.append(f"{name}: was {old!r}, now {new!r}")
                if name not in MAY_CHANGE_AND_IS_REPORTED and not _has_moved(name, old, new):
                    refused.append(changes[-1])
        if refused:
            raise PowerclipError(
                f"{output} was trained with other settings ({', '.join(refused)}); resume it with those, or name "
                "another folder"
            )
        return ", ".join(changes)

    @contextmanager
    def locked(self, config: TrainConfig, *, resume: bool) -> Iterator[None]:
        """Create the folder and keep other trainings out of it; all processes take part, the first holds the lock.

        The lock ends with its process, however that ends. It holds on a file system that the nodes share if that has
        ``flock``. PowerclipError if another training holds it, or has used the folder since it was checked.
        """
        lock = FileLock(self.lock_file, timeout=LOCK_WAIT_S)
        try:
            rank0_first(lambda: self._lock(lock, config, resume=resume))
            yield
        finally:
            lock.release()

    def _lock(self, lock: FileLock, config: TrainConfig, *, resume: bool) -> None:
        if rank() > 0:
            return
        make_folder(self.path)
        try:
            lock.acquire()
        except Timeout as error:
            owner = self.lock_file.read_text(encoding="utf-8", errors="replace").strip() or "another process"
            raise PowerclipError(
                f"{owner} is training in {self.path}; wait for it or end it, or name another folder"
            ) from error
        self.lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        self.check(config, resume=resume)

    def open(self, config: TrainConfig, data: DataProvenance, *, resume: bool) -> Path | None:
        """Start in the folder, or find the checkpoint to resume from; all processes take part and get the same answer.

        A new run's config and data are recorded. PowerclipError if the processes do not share the folder, or its run
        was trained on other data or has lost its checkpoints.
        """
        found = self.latest_checkpoint() if resume else None
        if resume and found is None and self.has_trained():
            model = f"start another from its model with --model.pretrained {self.model}, or " * self.model.exists()
            raise PowerclipError(
                f"{self.path} holds a run that did {self.status().get('step', 'some')} steps but no checkpoint to "
                f"continue from; {model}name another folder"
            )
        if found is not None:
            self.check_data(data)
        wait_for_all()  # all have looked before one writes
        if rank() == 0:
            make_folder(self.path)
        if found is None:
            self.record(config, data)
        wait_for_all()
        if not is_shared(self.path):
            raise PowerclipError(f"output {self.path} is not the same folder on all nodes; name one that they share")
        step = broadcast(-1 if found is None else step_of(found))
        return None if step < 0 else checkpoint_path(self.checkpoints, step)

    def check_data(self, data: DataProvenance) -> None:
        """Check that the run, if it names its data, was trained on these; PowerclipError if not."""
        before = self.data()
        if before is not None and not before.same_as(data):
            raise PowerclipError(
                f"{self.path} was trained on {before.samples} samples in {before.shards} shards, "
                f"and these data are {data.samples} in {data.shards} with other names or content; "
                f"resume it on {', '.join(before.sources)}, or start another run from its model"
            )

    def record(self, config: TrainConfig, data: DataProvenance) -> None:
        """Write ``config.yaml`` and ``data.json``; the first process does."""
        if rank() == 0:
            atomic_write(self.config_file, to_yaml(config))
            write_json(self.data_file, dataclasses.asdict(data))

    def write_status(self, *, step: int, steps: int, finished: bool = False) -> None:
        """Write ``status.json``; the first process does."""
        if rank() == 0:
            write_json(self.status_file, {"step": step, "steps": steps, "finished": finished})

    def config(self) -> TrainConfig:
        """The settings of the run; ValueError if ``config.yaml`` is missing or damaged."""
        return load_config(self.config_file)

    def data(self) -> DataProvenance | None:
        """The data of the run, None if it does not say (earlier versions); ValueError if ``data.json`` is damaged."""
        if not self.data_file.exists():
            return None
        return from_dict(DataProvenance, read_json(self.data_file), where=str(self.data_file))

    def holds_something(self) -> bool:
        """Whether there is anything of a run in the folder, or a model."""
        files = (self.config_file, self.metrics_file, self.evaluation_file, self.model)
        return any(file.exists() for file in files) or any(self.path.glob("*config.json"))

    def has_trained(self) -> bool:
        """Whether a run has left a checkpoint or a model, even if it is no longer there."""
        return self.latest_checkpoint() is not None or self.model.exists() or self.status().get("step", 0) != 0

    def is_finished(self) -> bool:
        """Whether all that its config asked for is done."""
        return bool(self.status().get("finished"))

    def status(self) -> dict[str, Any]:
        """What ``status.json`` holds; empty if it is missing or damaged."""
        try:
            found = read_json(self.status_file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint, None if there is none."""
        return next(reversed(all_checkpoints(self.checkpoints)), None)


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Run folders by the names to show: their own, or their paths if two have the same."""
    runs = {folder.name or str(folder): folder for folder in folders}
    return runs if len(runs) == len(folders) else {str(folder): folder for folder in folders}


def require_free(output: Path, *, folder: bool = True) -> None:
    """Check that a folder, or a file, can be made; PowerclipError if it is a file or holds something."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise PowerclipError(f"output {output} exists; remove it, or name another {'folder' if folder else 'file'}")
    require_writable(output, folder=folder)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects with a "step" in a ``metrics.jsonl``, in order, None for NaN;
    lines that a crash damaged are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            odd = (name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value))
            lines.append({**line, **dict.fromkeys(odd)})
    return lines


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is stored."""
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def all_checkpoints(checkpoints: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted((path for path in checkpoints.glob("*") if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of)


def _changes(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of each setting that differs."""
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(after):
            yield from _changes(before, after, f"{prefix}{field.name}.")
        elif before != after and not _same_file(before, after):
            yield f"{prefix}{field.name}", before, after


def _same_file(a: Any, b: Any) -> bool:
    """Whether two values are paths of one file or folder, one of them relative, say."""
    paths = isinstance(a, str) and isinstance(b, str) and _place(a).exists()
    return paths and _place(a).resolve() == _place(b).resolve()


def _has_moved(name: str, old: Any, new: Any) -> bool:
    """Whether the model a run started from is no longer where it was, and is named where it is now.

    The run's weights are those of its checkpoint, which fits no other architecture.
    """
    if name not in ("model.name", "model.pretrained") or not isinstance(old, str) or not isinstance(new, str):
        return False
    path = r"(?!\w+$).*" if name == "model.pretrained" else r"local-dir:.*|.*\.json"  # tags are words
    return bool(re.fullmatch(path, old)) and not _place(old).exists() and _place(new).exists()


def _place(value: str) -> Path:
    """The file or folder that a setting names, if it names one."""
    return Path(value.removeprefix("local-dir:")).expanduser()
