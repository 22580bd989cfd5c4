"""Signals become requests that the loop checks between steps."""

import atexit
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Sent by hand, by a cluster that takes its node back, and by one that warns before it does."""

ECHO_S = 2.0
"""A second signal within this time is an echo: clusters signal a process group, and launchers pass it on."""


@dataclass
class Stop:
    """Set by a signal; the loop checks it between steps."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a request to stop; a later one acts as usual.

    An echo of the first has no effect, even after the block or while the interpreter exits, which waits for it.
    Otherwise the echo would kill a run that stopped within milliseconds. So after a stop the handlers stay until
    ``ECHO_S`` has passed and another signal comes, or the interpreter exits.
    """
    stop, first = Stop(), 0.0
    old: dict[int, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if not stop.requested:
            stop.requested, first = True, time.monotonic()
        elif not echoes():
            signal.signal(number, old[number])
            signal.raise_signal(number)

    def echoes() -> bool:
        return stop.requested and time.monotonic() - first <= ECHO_S

    def restore() -> None:
        for number, previous in old.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, previous)

    def end() -> None:  # the interpreter gives signals their default action soon, which is to end the process
        time.sleep(max(0.0, first + ECHO_S - time.monotonic()))
        restore()

    try:
        for number in SIGNALS:
            old[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals are the caller's
        old.clear()
    try:
        yield stop
    finally:
        if echoes():
            atexit.register(end)
        else:
            restore()
