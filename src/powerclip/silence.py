"""A word after ten seconds of silence: what is being waited for,
whatever it is (an import, a download, an index, ...)."""

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from types import FrameType
from typing import Any

from powerclip.launcher import is_first_process

AFTER_S = 10.0
"""Silence that is broken."""

AGAIN_S = 600.0
"""The same thing is said again after this long: what takes long is expected to have its own progress."""

LEVEL = 2
"""Which documented function is named, from the outermost: the command's own says too little, inner ones too much."""


@contextmanager
def broken_silence(command: str) -> Iterator[None]:
    """Say on standard error what this thread is doing whenever nothing was printed for ``AFTER_S`` seconds.

    What it does is the first line of the docstring of what the command's own function has called, or what is being
    imported. Of several processes of one job, only the first one speaks.
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
            if now - heard[0] < AFTER_S or frame is None:
                continue
            work, library = what_is_done(frame, command)
            if now - said.get(work, -AGAIN_S) >= AGAIN_S:
                said[work] = now
                place = f" (in {library})" if library else ""
                print(f"powerclip: still at work: {work}{place}", file=sys.stderr, flush=True)

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


def what_is_done(frame: FrameType, command: str) -> tuple[str, str]:
    """What a stack is doing, in words, and in which library it is just now, if that says more."""
    library, imported = _module_of(frame).split(".")[0], ""
    lines: list[str] = []
    inner: FrameType | None = frame
    while inner is not None:
        name, function = _module_of(inner), inner.f_code
        if function.co_name == "_find_and_load" and "importlib" in function.co_filename and not lines:
            imported = str(inner.f_locals.get("name", ""))
        if name.startswith("powerclip") and imported:
            break
        if name.startswith("powerclip.") and (line := _first_line(name, function.co_qualname)):
            lines.append(line)
        inner = inner.f_back
    if imported:
        return f"importing {imported}", ""
    if not lines:
        return command, ""
    return lines[max(0, len(lines) - LEVEL)], "" if library in ("powerclip", "time") else library


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _first_line(module: str, name: str) -> str:
    """The first line of a function's docstring without its full stop;
    empty if it has none, or is inside another one."""
    if module in ("powerclip.cli", "powerclip.commands", __name__) or module.startswith("powerclip.distributed"):
        return ""
    try:
        function = reduce(getattr, name.split("."), importlib.import_module(module))
    except (AttributeError, ImportError):
        return ""
    return (function.__doc__ or "").strip().split("\n")[0].split(";")[0].rstrip(".:,")
