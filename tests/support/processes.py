"""Runs a function on several gloo processes and brings back what each returned."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank, function, size, folder, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(function(rank, size, *arguments), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_on_processes(size, function, folder, *arguments):
    """[function(rank, size, *arguments) for each rank], run side by side; function must be a module's own."""
    mp.spawn(_worker, args=(function, size, str(folder), arguments), nprocs=size, join=True)
    return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=True) for rank in range(size)]
