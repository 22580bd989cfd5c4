"""Many processes: joining them, exchanging the rows of a batch that is spread over them, and spreading a model."""

from powerclip.distributed.gather import (
    exchange_sizes,
    gather_rows,
    max_over_processes,
    rank,
    sum_over_processes,
    with_value,
    world_size,
)
from powerclip.distributed.launch import any_rank, broadcast, is_shared, process_group, rank0_first, wait_for_all
from powerclip.distributed.parallel import (
    average_gradients,
    average_ignored_gradients,
    no_sync_unless_last,
    parallelize,
    reshard,
)
from powerclip.distributed.rows import RowRequest, fetch_rows, request_rows, ring

__all__ = [
    "RowRequest",
    "any_rank",
    "average_gradients",
    "average_ignored_gradients",
    "broadcast",
    "exchange_sizes",
    "fetch_rows",
    "gather_rows",
    "is_shared",
    "max_over_processes",
    "no_sync_unless_last",
    "parallelize",
    "process_group",
    "rank",
    "rank0_first",
    "request_rows",
    "reshard",
    "ring",
    "sum_over_processes",
    "wait_for_all",
    "with_value",
    "world_size",
]
