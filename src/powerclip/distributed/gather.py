"""Collectives that are the identity on one process; ``rows`` has those in which no process gets everything.

The convention of every loss here: a process computes its rows' share of the global loss, and the backward pass of
``gather_rows`` sums over processes. So a process's own rows get the gradient of the global loss.
DistributedDataParallel averages the gradients of parameters, but their sum is needed: multiply the loss by the number
of processes before ``backward``.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the default group; 1 if none is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 if no group is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over processes, without gradient."""
    return _reduced(value, dist.ReduceOp.SUM)


def max_over_processes(value: Tensor) -> Tensor:
    """The elementwise maximum of a tensor over processes, without gradient."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: Tensor, op: Any) -> Tensor:
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, op=op)
    return value


def with_value(share: Tensor, value: Tensor) -> Tensor:
    """``value`` in the forward pass, with the gradient of ``share``: a process's part of a loss over all processes."""
    return share + (value - share).detach()


def talking_device(device: torch.device) -> torch.device:
    """Where processes with tensors on ``device`` exchange small numbers:
    on the CPU if their group has a backend for it.

    What is read there does not wait for a GPU.
    """
    alone = world_size() == 1
    return torch.device("cpu") if alone or "cpu:" in dist.get_backend_config() else device


def exchange_sizes(*sizes: int, device: torch.device) -> list[list[int]]:
    """Every process's sizes, as many on each; ``device`` is that of their tensors."""
    if world_size() == 1:
        return [list(sizes)]
    mine = torch.tensor(sizes, device=talking_device(device))
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    found: list[list[int]] = torch.stack(everyone).tolist()
    return found


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """The rows (B, ...) of all processes, in rank order, and the index of this process's first row among them.

    The gradient of a process's rows is summed over all processes, which may have different numbers of rows. A second
    dimension that differs (phrases per caption) is padded with zeros to the largest; all further ones must be equal.
    """
    if world_size() == 1:
        return x, 0
    rows, *widths = zip(*exchange_sizes(*x.shape[:2], device=x.device), strict=True)
    if widths and max(widths[0]) > x.shape[1]:
        x = torch.cat([x, x.new_zeros(x.shape[0], max(widths[0]) - x.shape[1], *x.shape[2:])], dim=1)
    gathered: Tensor = _GatherRows.apply(x, rows)
    return gathered, sum(rows[: rank()])


class _GatherRows(torch.autograd.Function):
    """all-gather forward; backward sums every process's gradient and keeps this process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: tuple[int, ...]) -> Tensor:
        ctx.rows = rows
        boolean = x.dtype == torch.bool
        mine = x.new_zeros(max(rows), *x.shape[1:], dtype=torch.uint8 if boolean else x.dtype)
        mine[: len(x)] = x
        everyone = [torch.empty_like(mine) for _ in rows]
        dist.all_gather(everyone, mine)
        gathered = torch.cat([part[:count] for part, count in zip(everyone, rows, strict=True)])
        return gathered.bool() if boolean else gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        start = sum(ctx.rows[: rank()])
        return grad[start : start + ctx.rows[rank()]], None
