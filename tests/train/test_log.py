import dataclasses
import io
import re
import sys
from contextlib import closing
from datetime import timedelta

import pytest
from rich.console import Console

from powerclip.errors import PowerclipError
from powerclip.recipes import recipe
from powerclip.runs import read_metrics
from powerclip.train import log
from powerclip.train.log import MetricsLog, find_tracker, progress_bar

TINY = recipe("scenes_tiny")


def test_a_resumed_log_holds_every_step_once(tmp_path):
    log = MetricsLog(tmp_path, config=TINY)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1.0})
    log.close()
    log = MetricsLog(tmp_path, config=TINY, first_step=3)
    for step in (4, 5):
        log.write({"step": step, "loss": 2.0})
    log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert list((tmp_path / "tensorboard").iterdir())


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
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    with progress_bar("run", steps=10_000, done=100, console=Console(file=out, width=200)) as report:
        for step in range(101, 200):
            clock[0] += 20
            report(step, "loss 1")
    lines = out.getvalue().splitlines()
    assert len(lines) == 33
    assert lines[0] == f"run: 103/10000 steps, loss 1, {timedelta(seconds=20 * (10_000 - 103))} left"


def test_a_bar_knows_the_remaining_time_though_it_is_updated_seldom():
    out, clock = io.StringIO(), [0.0]
    console = Console(file=out, width=200, force_terminal=True, get_time=lambda: clock[0])
    with progress_bar("run", steps=100, console=console) as report:
        for step in (10, 20, 30):
            clock[0] += 100
            report(step, "")
    assert "left 0:11:40" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())  # 700 s


def test_what_is_not_finite_is_null(tmp_path):
    log = MetricsLog(tmp_path, config=TINY)
    log.write({"step": 1, "loss": float("nan"), "gradient_norm": float("inf")})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "gradient_norm": null}\n'


def test_tensorboard_has_every_step_of_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (1, 2, 3, 4)), (3, (4, 5))):
        log = MetricsLog(tmp_path, config=TINY, first_step=first)
        for step in steps:
            log.write({"step": step, "loss": float(step)})
        log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5]


class FakeWandb:
    """Stands for the package: notes what is logged to a run of it."""

    def __init__(self):
        self.init_arguments, self.lines, self.finished = [], [], 0

    def init(self, **arguments):
        self.init_arguments.append(arguments)
        return self

    def log(self, values, *, step):
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1


def test_weights_and_biases_gets_the_same_lines_and_one_run_when_resumed(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = dataclasses.replace(TINY, wandb_project="mine")
    for first_step in (0, 1):
        with closing(MetricsLog(tmp_path, config=config, first_step=first_step, tracker=find_tracker(config))) as log:
            log.write({"step": first_step + 1, "loss": 2.0})
    assert wandb.lines == [(1, {"loss": 2.0}), (2, {"loss": 2.0})]
    first, second = wandb.init_arguments
    assert first == second
    assert first["project"] == "mine"
    assert first["resume"] == "allow"
    assert first["config"]["optim"]["learning_rate"] == 2e-3
    assert wandb.finished == 2


def test_weights_and_biases_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(TINY, wandb_project="mine")
    with pytest.raises(PowerclipError, match=r"needs wandb, .* pip install 'powerclip\[wandb\]'"):
        find_tracker(config)
    assert find_tracker(TINY) is None
