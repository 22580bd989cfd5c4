"""How far work has come: a bar in a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from powerclip.errors import printable

SPEED_OVER_S = 1800.0
"""The remaining time is estimated from the speed over this long: metrics may come minutes apart."""

LINE_EVERY_S = 60.0
"""Time between lines of progress if there is no terminal to show a bar."""

LONGEST_S = 10**13
"""The longest remaining time that is shown; a timedelta holds little more."""

Report = Callable[[int, str], None]
"""Shows that this many steps are done, with a short text."""


def print_line(console: Console, text: str) -> None:
    """Print a line as it is, whatever names are in it: they can neither act on the terminal nor set its colours."""
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)


def wait(seconds: float) -> None:
    """Sleep while there is nothing to do: the only silence that ``powerclip.silence`` does not break."""
    time.sleep(seconds)


@contextmanager
def progress_bar(title: str, *, steps: int, done: int = 0, unit: str = "steps", console: Console) -> Iterator[Report]:
    """A progress bar with the remaining time; in a file or a pipe, a line every minute and every tenth of the steps."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, speed_estimate_period=SPEED_OVER_S) as progress:
            task = progress.add_task(printable(title), total=steps, completed=done, text="")
            yield lambda step, text: progress.update(task, completed=step, text=text)
        return
    start = last = time.monotonic()
    tenth = 10 * done // max(1, steps)

    def report(step: int, text: str) -> None:
        nonlocal last, tenth
        reached, now = 10 * step // steps, time.monotonic()
        if reached == tenth and now - last < LINE_EVERY_S:
            return
        tenth, last = reached, now
        seconds = round((now - start) / max(1, step - done) * (steps - step))
        left = timedelta(seconds=min(seconds, LONGEST_S))
        print_line(console, f"{title}: {step}/{steps} {unit}, {text}, {left} left")

    yield report
