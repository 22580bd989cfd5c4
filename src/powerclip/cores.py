"""The cores of this machine, and how many of them torch computes on beside processes that read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def available_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def cores_left_to(workers: int) -> Iterator[None]:
    """Within, torch computes on the cores that ``workers`` processes leave, and on half of them at least.

    Threads of torch that share a core with a reader wait for each other at every operation: on two cores, one thread
    beside one reader trains 1.2 to 1.7 times as fast as two (docs/performance.md). Readers sleep when they are ahead,
    so that many of them do not need as many cores. ``OMP_NUM_THREADS``, if it is set, decides instead.
    """
    if not workers or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, available_cores() // 2, available_cores() - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
