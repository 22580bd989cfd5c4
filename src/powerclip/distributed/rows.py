"""Rows that every process keeps to itself: shown to all in a ring, or fetched from whoever has them.

No process ever holds the rows of all: of a ring, two others' blocks beside its own; of a fetch, what was asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from powerclip.distributed.gather import rank, talking_device, world_size


def ring(block: Tensor, rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield (whose, block) of every process, this one's own first; ``rows[n]`` is the length of process n's block.

    While the caller works with one block, the next is on its way. All other sizes are equal; no gradient goes through.
    All processes take all blocks.
    """
    size, own, block = world_size(), rank(), block.detach().contiguous()
    for step in range(size):
        owner, following, works, arriving = (own + step) % size, (own + step + 1) % size, [], block
        if step + 1 < size:
            arriving = block.new_empty(rows[following], *block.shape[1:])
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, block, (own - 1) % size),
                    dist.P2POp(dist.irecv, arriving, (own + 1) % size),
                ]
            )
        yield owner, block
        for work in works:
            work.wait()
        block = arriving


@dataclass(frozen=True, kw_only=True)
class RowRequest:
    """Rows that this process wants of all processes', and those that the others want of this one's."""

    index: Tensor
    """(P,) int64, among the rows of all processes in rank order; on the rows' device."""
    place: Tensor
    """(P,) int64: where each is among those that arrive, which come once each."""
    sent: Tensor
    """(S,) int64: this process's rows for the others, one process after the other."""
    arrive: list[int]
    leave: list[int]
    """How many rows come from and go to each process."""


def request_rows(index: Tensor, rows: Sequence[int]) -> RowRequest:
    """Tell every process which of its rows are wanted here: (P,) indices among the ``rows[n]`` of each process n.

    An index may come several times. This waits for the device of ``index``: who gets how much must be known.
    """
    device = index.device
    wanted, place = torch.unique(
        index.to(talking_device(device)), return_inverse=True
    )  # sorted, so one owner after the other
    ends = torch.tensor(list(accumulate(rows)), device=wanted.device)
    owner = torch.bucketize(wanted, ends, right=True)
    counts = torch.bincount(owner, minlength=world_size())
    asked = torch.empty_like(counts)
    dist.all_to_all_single(asked, counts)
    arrive, leave = torch.stack([counts, asked]).tolist()
    sent = wanted.new_empty(sum(leave))
    dist.all_to_all_single(sent, wanted - (ends - torch.tensor(rows, device=ends.device))[owner], leave, arrive)
    place, sent = (x.to(device, non_blocking=True) for x in (place, sent))
    return RowRequest(index=index, place=place, sent=sent, arrive=arrive, leave=leave)


def fetch_rows(x: Tensor, request: RowRequest) -> Tensor:
    """The requested rows (P, ...) of the x (B, ...) of all processes, which are of one shape but for B.

    The gradient of a row is summed over all processes that asked for it.
    """
    fetched: Tensor = _FetchRows.apply(x, request)
    return fetched


class _FetchRows(torch.autograd.Function):
    """All-to-all, and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, request: RowRequest) -> Tensor:
        ctx.request, ctx.rows = request, len(x)
        arrived = x.new_empty(sum(request.arrive), *x.shape[1:])
        dist.all_to_all_single(arrived, x.index_select(0, request.sent), request.arrive, request.leave)
        return arrived.index_select(0, request.place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        request, grad = ctx.request, grads[0].contiguous()
        summed = grad.new_zeros(sum(request.arrive), *grad.shape[1:]).index_add_(0, request.place, grad)
        back = grad.new_empty(sum(request.leave), *grad.shape[1:])
        dist.all_to_all_single(back, summed, request.leave, request.arrive)
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_add_(0, request.sent, back), None
