"""Many processes: joining them, gathering a batch that is spread over them, and spreading a model."""

from powerclip.distributed.gather import gather_rows, max_over_processes, rank, sum_over_processes, world_size
from powerclip.distributed.launch import (
    agree,
    first_alone,
    first_lists,
    first_says,
    is_shared,
    process_group,
    wait_for_all,
)
from powerclip.distributed.parallel import average_ignored_gradients, last_of_many, parallelize, reshard

__all__ = [
    "agree",
    "average_ignored_gradients",
    "first_alone",
    "first_lists",
    "first_says",
    "gather_rows",
    "is_shared",
    "last_of_many",
    "max_over_processes",
    "parallelize",
    "process_group",
    "rank",
    "reshard",
    "sum_over_processes",
    "wait_for_all",
    "world_size",
]
