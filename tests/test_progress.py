import io
import re
from datetime import timedelta

from rich.console import Console

from powerclip import progress
from powerclip.progress import progress_bar


def test_without_a_terminal_progress_is_ten_lines():
    out = io.StringIO()
    with progress_bar("run", steps=50, console=Console(file=out, width=200)) as report:
        for step in range(1, 51):
            report(step, "loss 1")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("run: 5/50 steps, loss 1, 0:00:0") and lines[0].endswith(" left")
    assert len(lines) == 10


def test_a_long_run_without_a_terminal_says_every_minute_how_long_it_will_take(monkeypatch):
    out, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress_bar("run", steps=10_000, done=100, console=Console(file=out, width=200)) as report:
        for step in range(101, 200):
            clock[0] += 20
            report(step, "loss 1")
    lines = out.getvalue().splitlines()
    assert len(lines) == 33
    assert lines[0] == f"run: 103/10000 steps, loss 1, {timedelta(seconds=20 * (10_000 - 103))} left"


def test_a_run_without_end_has_a_remaining_time_too(monkeypatch):
    out, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress_bar("run", steps=10**20, console=Console(file=out, width=200)) as report:
        clock[0] = 60
        report(1, "loss 1")
    assert out.getvalue().rstrip().endswith(f"{timedelta(seconds=10**13)} left")


def test_a_bar_knows_the_remaining_time_though_it_is_updated_seldom():
    out, clock = io.StringIO(), [0.0]
    console = Console(file=out, width=200, force_terminal=True, get_time=lambda: clock[0])
    with progress_bar("run", steps=100, console=console) as report:
        for step in (10, 20, 30):
            clock[0] += 100
            report(step, "")
    assert "left 0:11:40" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())  # 700 s
