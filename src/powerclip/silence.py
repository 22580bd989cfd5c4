"""A word after ten seconds of silence: what is being waited for,
whatever it is (an import, a download, an index, ...)."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from powerclip.launcher import is_first_process

AFTER_S = 10.0
"""Silence that is broken."""

AGAIN_S = 600.0
"""The same thing is said again after this long: what takes long is expected to have its own progress."""


@contextmanager
def broken_silence(command: str) -> Iterator[None]:
    """Say on standard error what this thread is doing whenever nothing was printed for ``AFTER_S`` seconds.

    The line names the import, or the module of powerclip that is running and the library that it has called. Of several
    processes of one job, only the first one speaks. A thread that does nothing but ``wait`` is left in peace.
    """
    if not is_first_process():
        yield
        return
    heard, done, watched = [time.monotonic()], threading.Event(), threading.get_ident()
    streams = [(stream, stream.write) for stream in (sys.stdout, sys.stderr) if stream]

    def listening(write: Any) -> Any:
        def heard_write(text: str) -> Any:
            heard[0] = time.monotonic()
            return write(text)

        return heard_write

    def speak() -> None:
        said: dict[str, float] = {}
        while not done.wait(min(1.0, AFTER_S / 4)):
            now = time.monotonic()
            frame = sys._current_frames().get(watched)
            if frame is not None and (_module_of(frame), frame.f_code.co_name) == ("powerclip.progress", "wait"):
                heard[0] = now
            if now - heard[0] < AFTER_S or frame is None:
                continue
            place, library = what_is_done(frame)
            if now - said.get(place, -AGAIN_S) >= AGAIN_S:
                said[place] = now
                print(f"{command}: still at work ({place}{library and f', {library}'})", file=sys.stderr, flush=True)

    for stream, write in streams:
        stream.write = listening(write)  # type: ignore[method-assign]
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for stream, write in streams:
            stream.write = write  # type: ignore[method-assign]


def what_is_done(frame: FrameType) -> tuple[str, str]:
    """What a stack is doing, and the library in which that is just now.

    It is the import, or else the outermost module in a package of powerclip, which stays the same while that works.
    """
    library, imported = _module_of(frame).split(".")[0], ""
    modules: list[str] = []
    inner: FrameType | None = frame
    while inner is not None:
        name, function = _module_of(inner), inner.f_code
        if not modules and function.co_name == "_find_and_load" and "importlib" in function.co_filename:
            imported = str(inner.f_locals.get("name", ""))
        if name.startswith("powerclip"):
            modules.append(name)
        inner = inner.f_back
    if imported:
        return f"importing {imported}", ""
    packaged = [name for name in modules if name.count(".") > 1]
    place = (packaged or modules or ["powerclip"])[-1]
    return f"in {place}", "" if library in ("powerclip", "time", "threading") else library


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
