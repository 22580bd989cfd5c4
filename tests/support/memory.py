"""How much memory this process has."""

import re
from contextlib import contextmanager
from pathlib import Path


def _resident_bytes(name):
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


@contextmanager
def more_bytes():
    """A list that gets, when the block ends, by how much the resident memory had grown at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, peak = _resident_bytes("VmRSS"), []
    yield peak
    peak.append(_resident_bytes("VmHWM") - before)
