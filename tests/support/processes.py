"""Runs a function on several gloo processes and brings back what each returned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from powerclip.evaluate import Estimate

# Processes fork from a server that has imported what takes seconds to import; each is otherwise a fresh one.
multiprocessing.get_context("forkserver").set_forkserver_preload(["powerclip.train", "torch.distributed.fsdp"])


def _worker(rank, function, size, folder, arguments):
    with (Path(folder) / f"stderr-{rank}").open("a") as file:
        os.dup2(file.fileno(), 2)  # the server's own is not the one that pytest captures
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(function(rank, size, *arguments), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_on_processes(size, function, folder, *arguments):
    """[function(rank, size, *arguments) for each rank], run side by side; function must be a module's own.

    What they print to the standard error is printed to this process's once all have ended.
    """
    try:
        mp.start_processes(
            _worker, args=(function, size, str(folder), arguments), nprocs=size, start_method="forkserver"
        )
    finally:
        for path in sorted(Path(folder).glob("stderr-*")):
            print(path.read_text(), end="", file=sys.stderr)
            path.unlink()
    with torch.serialization.safe_globals([Estimate]):
        return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=True) for rank in range(size)]


def children_of(process):
    """The numbers of the processes that one, given by its number, has started."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"PPid:\t{process}\n" in (entry / "status").read_text():
                found.append(int(entry.name))
    return found


def is_alive(process):
    """Whether a process runs."""
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False
