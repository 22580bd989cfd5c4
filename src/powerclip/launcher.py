"""What torchrun has started: which process speaks, and that all end when torchrun has died, wherever they wait."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from powerclip.errors import PowerclipError, shown

LOOK_EVERY_S = 2.0
"""Time between looks at the launcher."""

LAST_STEP_S = 30.0
"""A training that can finish its step and write a checkpoint in this time does."""

NAME = "launcher watch"


def end_with_launcher() -> None:
    """Watch torchrun, if it has started this process, from now on;
    when it has died, end as after SIGTERM, or abruptly."""
    if "TORCHELASTIC_RUN_ID" in os.environ and all(thread.name != NAME for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(os.getppid(),), name=NAME, daemon=True).start()


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that a launcher has started: its first, or the only one."""
    return launcher_number("RANK", 0) == 0


def launcher_number(variable: str, otherwise: int) -> int:
    """A number that launchers set in the environment, ``otherwise`` where it is not set or empty; PowerclipError if it
    is not a number."""
    text = os.environ.get(variable, "").strip()
    if text and not text.isdecimal():
        raise PowerclipError(
            f"the environment variable {variable} is {shown(text)}; it must be a number, as torchrun sets it: unset it"
        )
    return int(text) if text else otherwise


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY_S)
    with suppress(OSError):  # the launcher may have read what is printed
        print(f"powerclip: torchrun (process {launcher}) has died, so this ends too", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_STEP_S)  # then it waits for something that will not come: the store, another process
    os._exit(1)
