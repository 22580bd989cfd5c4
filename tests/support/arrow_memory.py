"""How much memory pyarrow holds."""

from contextlib import contextmanager

import pyarrow as pa

POOLS = []
"""They outlive what was allocated from them."""


@contextmanager
def peak_bytes():
    """A list that gets, when the block ends, the most bytes that pyarrow held in it."""
    usual, peak = pa.default_memory_pool(), []
    POOLS.append(pa.proxy_memory_pool(usual))
    pa.set_memory_pool(POOLS[-1])
    try:
        yield peak
    finally:
        pa.set_memory_pool(usual)
        peak.append(POOLS[-1].max_memory())
