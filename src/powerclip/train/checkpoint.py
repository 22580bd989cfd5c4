"""Checkpoints: folders that are whole as soon as they exist."""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from powerclip.distributed import broadcast, rank, wait_for_all
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import sync_folder
from powerclip.model import PowerCLIP, hub
from powerclip.runs import all_checkpoints, checkpoint_path
from powerclip.train.reading import MisfitError, PlainPlanner, PlainReader


def save(folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> Path:
    """Write ``folder/step-XXXXXXXX``: everything goes to a temporary folder that is renamed when complete.

    One that is there is whole, and of the same step, and stays. All processes take part. ``extra`` holds numbers, tensors and dicts of them beside the model's and the
    optimiser's state.

    Raises:
        RunFailedError: it could not be written.
    """
    target = checkpoint_path(folder, step)
    temporary = folder / f".{target.name}.tmp"
    if broadcast(target.exists()):
        return target
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "extra": extra}
    try:
        with _without_process_group_warning():
            save_distributed(state, checkpoint_id=temporary)
    except CheckpointException as error:
        raise RunFailedError(
            f"checkpoint {target} could not be written: {_reason(error)}; the earlier ones are whole: see to the disk, "
            "then go on with --resume auto"
        ) from error
    wait_for_all()
    if rank() == 0:
        sync_folder(temporary)
        temporary.rename(target)
        sync_folder(folder)
    wait_for_all()
    return target


def save_model(model: PowerCLIP, folder: Path) -> None:
    """Write a model folder as users exchange it; all processes take part, the first one writes."""
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if rank() == 0:
        hub.save(model, folder, state=state)
    wait_for_all()


def load(
    checkpoint: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]
) -> dict[str, Any]:
    """Put a checkpoint's state into a model and its optimiser; return its ``extra``.

    Raises:
        PowerclipError: the checkpoint is not of this model.
        RunFailedError: a file of it is missing, cut short or not what was written.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state, "extra": extra}
    reader = PlainReader(checkpoint)
    try:
        reader.read_metadata()  # torch would look for other descriptions, and log a stack trace
        with _without_process_group_warning():
            load_distributed(state, storage_reader=reader, planner=PlainPlanner())
    except (CheckpointException, OSError, pickle.UnpicklingError) as error:
        if isinstance(_cause(error), MisfitError):
            raise PowerclipError(
                f"cannot resume from {checkpoint}: it does not fit this config's model ({_reason(error)}); "
                "train with the run's own recipe and settings, or into another --output"
            ) from error
        raise RunFailedError(
            f"checkpoint {checkpoint} is damaged ({_reason(error)}); delete it, and --resume auto goes on from the one "
            "before"
        ) from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return dict(state["extra"])


@contextmanager
def _without_process_group_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)", category=UserWarning)
        yield


def _cause(error: BaseException) -> BaseException:
    """What went wrong on the first process where anything did; torch wraps it."""
    if isinstance(error, CheckpointException) and error.failures:
        cause: BaseException = error.failures[min(error.failures)][0]
        return cause
    return error


def _reason(error: BaseException) -> str:
    """In one line; what the system said comes before what torch made of it."""
    cause: BaseException | None = _cause(error)
    first = cause
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = cause or first
    return (str(reason).strip() or type(reason).__name__).splitlines()[0]


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and unfinished leftovers."""
    for path in all_checkpoints(folder)[:-keep]:
        path.rename(path.with_name(f".{path.name}.old"))  # what has its own name is whole, whenever this is cut short
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
