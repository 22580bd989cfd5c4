import dataclasses
import io
import sys

import pytest
from rich.console import Console

from powerclip.errors import PowerclipError
from powerclip.recipes import recipe
from powerclip.train.log import MetricsLog, metrics_log, progress_bar, read_metrics


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_a_resumed_log_holds_every_step_once(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1.0})
    log.close()
    log = MetricsLog(tmp_path, first_step=3)
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
    with progress_bar("run", steps=50, console=Console(file=out, width=200)) as reporter:
        for step in range(1, 51):
            reporter.update(step, "loss 1")
    assert out.getvalue().splitlines()[0] == "run: 5/50 steps, loss 1"
    assert len(out.getvalue().splitlines()) == 10


class FakeWandb:
    """Stands for the package: notes what a run of it is told."""

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
    config = dataclasses.replace(recipe("scenes_tiny"), wandb_project="mine")
    for first_step in (0, 1):
        with metrics_log(tmp_path, first_step=first_step, config=config) as log:
            log.write({"step": first_step + 1, "loss": 2.0})
    assert wandb.lines == [(1, {"loss": 2.0}), (2, {"loss": 2.0})]
    first, second = wandb.init_arguments
    assert first == second
    assert first["project"] == "mine"
    assert first["resume"] == "allow"
    assert first["config"]["optim"]["learning_rate"] == 1e-3
    assert wandb.finished == 2


def test_weights_and_biases_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(recipe("scenes_tiny"), wandb_project="mine")
    with (
        pytest.raises(PowerclipError, match=r"wandb is not installed; pip install 'powerclip\[wandb\]'"),
        metrics_log(tmp_path, first_step=0, config=config),
    ):
        pass
