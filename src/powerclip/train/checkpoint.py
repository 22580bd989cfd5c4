"""Checkpoints: folders that appear under their name when they are complete, and are read without running a pickle."""

import io
import pickle
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import metadata as description
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from powerclip.distributed import broadcast, rank, sum_over_processes, wait_for_all, world_size
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import SUMS, atomic_write, checksums, find_damaged, make_folder, sha256_of, sync_folder
from powerclip.runs import all_checkpoints, checkpoint_path

UNPICKLED = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
}
"""What a checkpoint's description may name in addition to dtypes and the classes of torch's module of descriptions."""


def save(folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> Path:
    """Write ``folder/step-XXXXXXXX``: everything goes to a temporary folder that is renamed when complete.

    If it exists, it is complete and of the same step, and stays. All processes take part. ``extra`` holds numbers,
    tensors and dicts of them. RunFailedError if it could not be written.
    """
    target = checkpoint_path(folder, step)
    temporary = folder / f".{target.name}.tmp"
    if broadcast(target.exists()):
        return target
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(folder)
    wait_for_all()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "extra": extra}
    try:
        with _without_process_group_warning():
            save_distributed(state, checkpoint_id=temporary)
    except CheckpointException as error:
        raise RunFailedError(
            f"checkpoint {target} could not be written: {_reason(error)}; earlier ones are intact: check the disk, "
            "then continue with --resume auto"
        ) from error
    wait_for_all()
    sums = checksums(temporary, _sha256_by_all)
    if rank() == 0:
        atomic_write(temporary / SUMS, sums)
        temporary.rename(target)
        sync_folder(folder)
    wait_for_all()
    return target


def load(
    checkpoint: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]
) -> dict[str, Any]:
    """Put a checkpoint's state into a model and its optimiser; return its ``extra``.

    PowerclipError if it is of another model or other settings; RunFailedError if a file of it is missing, truncated or
    damaged, which checksums tell to the bit. All processes take part.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state, "extra": extra}
    reader = _Reader(checkpoint)
    try:
        if damaged := find_damaged(checkpoint, _sha256_by_all):
            raise pickle.UnpicklingError(f"{damaged} is not as it was written: its checksum differs")
        # Read here: torch would look for other descriptions, and log a stack trace.
        if "extra.threads" not in reader.read_metadata().state_dict_metadata:  # an earlier version's
            state["extra"] = {name: value for name, value in extra.items() if name != "threads"}
        with _without_process_group_warning():
            load_distributed(state, storage_reader=reader, planner=_Planner())
    except (CheckpointException, OSError, pickle.UnpicklingError) as error:
        if isinstance(_cause(error), _MisfitError):
            raise PowerclipError(
                f"cannot resume from {checkpoint}: it does not fit this config's model ({_reason(error)}); "
                "train with the run's own recipe and settings, or into another --output"
            ) from error
        advice = "delete it, and --resume auto continues from the one before"
        if all_checkpoints(checkpoint.parent)[:1] == [checkpoint]:
            advice = "there is none before it: copy it again if you can, or train in another folder"
        raise RunFailedError(f"checkpoint {checkpoint} is damaged ({_reason(error)}); {advice}") from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return dict(state["extra"])


def _sha256_by_all(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of files, each of which one of the processes reads."""
    hashes = torch.zeros(len(paths), 32, dtype=torch.uint8)
    own = slice(rank(), None, world_size())
    for row, digest in zip(hashes[own], sha256_of(paths[own]), strict=True):
        row[:] = torch.tensor(list(bytes.fromhex(digest)))
    return [bytes(row.tolist()).hex() for row in sum_over_processes(hashes)]


@contextmanager
def _without_process_group_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)", category=UserWarning)
        yield


def _cause(error: BaseException) -> BaseException:
    """The error of the first process that failed; torch wraps it."""
    if isinstance(error, CheckpointException) and error.failures:
        cause: BaseException = error.failures[min(error.failures)][0]
        return cause
    return error


def _reason(error: BaseException) -> str:
    """One line: the system's error, if there is one behind torch's."""
    cause: BaseException | None = _cause(error)
    first = cause
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = cause or first
    return (str(reason).strip() or type(reason).__name__).splitlines()[0]


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what earlier runs left unfinished."""
    for leftover in list(folder.glob(".step-*")):
        shutil.rmtree(leftover)
    for path in all_checkpoints(folder)[:-keep]:
        old = path.with_name(f".{path.name}.old")
        path.rename(old)  # a folder with a checkpoint's own name stays complete if this is interrupted
        sync_folder(folder)
        shutil.rmtree(old)


class _MisfitError(ValueError):
    """A checkpoint of another model or of other settings."""


class _Reader(FileSystemReader):
    """Reads the description of a checkpoint without unpickling anything but its own classes."""

    def read_metadata(self, *_args: Any, **_options: Any) -> description.Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                found = _Unpickler(file).load()
            except pickle.UnpicklingError:
                raise
            except Exception as error:  # it makes objects, and calls what they are made by
                raise pickle.UnpicklingError(f"its description is truncated or malformed: {error}") from error
        if not isinstance(found, description.Metadata) or not isinstance(vars(found).get("state_dict_metadata"), dict):
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__} in place of its description")
        found.storage_meta = description.StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        own = getattr(description, name, None) if module == description.__name__ else None
        if (isinstance(own, type) and own.__module__ == module) or (module, name) in UNPICKLED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint does")


class _Planner(DefaultLoadPlanner):
    """Accepts numbers, strings, containers of them and tensors, and nothing else."""

    def create_local_plan(self) -> LoadPlan:
        try:
            return super().create_local_plan()
        except (RuntimeError, ValueError) as error:
            raise _MisfitError(str(error)) from error

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # refuses what the next line would run
        value.seek(0)
        super().load_bytes(read_item, value)
