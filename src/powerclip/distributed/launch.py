"""Joining the processes that torchrun, or any launcher that sets its variables,
has started, and agreeing among them."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from powerclip.devices import find_device
from powerclip.distributed.gather import rank, world_size
from powerclip.errors import PowerclipError
from powerclip.launcher import end_with_launcher, launcher_number

TIMEOUT = timedelta(minutes=30)
"""A collective that takes longer ends the job."""

RANK0_TIMEOUT = timedelta(days=7)
"""How long the other processes wait for work that the first one does alone, before the first step."""

T = TypeVar("T")


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """This process's device; where a launcher has started several processes, inside their group.

    The process ends with its launcher, if that is torchrun. An existing group is used and left alone. ``device`` is as
    in ``find_device``.
    """
    end_with_launcher()
    place = find_device(device)
    own = launcher_number("WORLD_SIZE", 1) > 1 and not dist.is_initialized()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if own and place.type == "cuda":
        dist.init_process_group("cuda:nccl,cpu:gloo", timeout=TIMEOUT, device_id=place)
    elif own:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield place
    finally:
        if own:
            dist.destroy_process_group()


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Each flag, True if any process has it; all processes call this. Runs on the CPU, without waiting for a GPU."""
    if world_size() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return tuple(bool(vote) for vote in votes.tolist())


def wait_for_all() -> None:
    """Return when every process has called this."""
    any_rank(False)


def broadcast(value: T, *, group: dist.ProcessGroup | None = None) -> T:
    """The first process's value, on all processes (of a group of all); anything that can be pickled."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def rank0_first(work: Callable[[], T]) -> T:
    """What the first process's work returns, or the PowerclipError it raises, on every process; the others wait."""
    if world_size() == 1:
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=RANK0_TIMEOUT)
    outcome: Any = None
    if rank() == 0:
        try:
            outcome = work()
        except PowerclipError as error:
            outcome = error
    outcome = broadcast(outcome, group=group)
    dist.destroy_process_group(group)
    if isinstance(outcome, PowerclipError):
        raise outcome
    return cast(T, outcome)


def is_shared(folder: Path) -> bool:
    """Whether a folder that exists on the first process is the same folder on all others."""
    mark = folder / f".seen-{broadcast(secrets.token_hex(8))}"
    if rank() == 0:
        mark.touch()
    wait_for_all()
    missing = any_rank(not mark.exists())[0]
    if rank() == 0:
        mark.unlink()
    return not missing
