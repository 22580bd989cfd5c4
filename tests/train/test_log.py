import dataclasses
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from powerclip.errors import PowerclipError
from powerclip.recipes import recipe
from powerclip.runs import read_metrics
from powerclip.train.log import MetricsLog, find_tracker

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


def test_a_resumed_log_holds_every_bad_batch_once(tmp_path):
    bad = tmp_path / "bad_batches.jsonl"
    bad.write_text("".join(f'{{"step": {step}, "process": 0, "keys": ["a"]}}\n' for step in (2, 3, 5)))
    for first, kept in ((3, [2, 3]), (0, [])):
        MetricsLog(tmp_path, config=TINY, first_step=first).close()
        assert [line["step"] for line in read_metrics(bad)] == kept


def test_a_full_disk_is_named(tmp_path):
    log = MetricsLog(tmp_path, config=TINY)
    log._file.close()
    log._file = Path("/dev/full").open("a")  # noqa: SIM115
    for write in (lambda: log.write({"step": 1}), log.close):
        with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"):
            write()


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
        time.sleep(1.01)  # TensorBoard reads files by name, and a name holds whole seconds, then a count without zeros
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
    assert first["config"]["optim"]["learning_rate"] == 1e-3
    assert wandb.finished == 2


def test_weights_and_biases_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(TINY, wandb_project="mine")
    with pytest.raises(PowerclipError, match=r"needs wandb, .* pip install 'powerclip\[wandb\]'"):
        find_tracker(config)
    assert find_tracker(TINY) is None
