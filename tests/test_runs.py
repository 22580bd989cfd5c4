import dataclasses
import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest

from powerclip import runs
from powerclip.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from powerclip.errors import PowerclipError
from powerclip.runs import RunFolder, all_checkpoints, by_name, checkpoint_path, read_metrics, step_of
from powerclip.types import DataProvenance

CONFIG = TrainConfig(steps=8)
DATA = DataProvenance(sources=("/data/a", "http://store/{0..9}.tar"), samples=40, shards=2, digest="abc")


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint after step 4."""
    run = RunFolder(tmp_path / "run")
    assert run.open(CONFIG, DATA, resume=False) is None
    checkpoint_path(run.checkpoints, 4).mkdir(parents=True)
    return run


def test_a_new_run_records_its_config_and_its_data(run):
    assert run.config() == CONFIG
    assert run.data() == DATA
    assert json.loads((run.path / "data.json").read_text()) == {
        "sources": ["/data/a", "http://store/{0..9}.tar"],
        "samples": 40,
        "shards": 2,
        "digest": "abc",
        "content": "",
    }


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_run_starts_in_a_folder_that_is_missing_or_empty(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for resume in (False, True):
        assert RunFolder(tmp_path / folder).check(CONFIG, resume=resume) == ""
    assert not (tmp_path / "missing").exists()


def test_a_used_folder_is_refused(run, tmp_path):
    with pytest.raises(PowerclipError, match="run is not empty; add --resume auto to continue its run"):
        run.check(CONFIG, resume=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(PowerclipError, match=r"file/run cannot be written \(.*/file: Not a directory\)"):
        RunFolder(tmp_path / "file" / "run").check(CONFIG, resume=False)
    with pytest.raises(PowerclipError, match="file is a file; name a folder"):
        RunFolder(tmp_path / "file").check(CONFIG, resume=True)
    with pytest.raises(PowerclipError, match=r"holds no run \(no config.yaml\)"):
        RunFolder(tmp_path).check(CONFIG, resume=True)


def test_the_same_file_may_be_named_by_another_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("start.pt", "other.pt"):
        (tmp_path / name).write_text("")
    config = dataclasses.replace(CONFIG, model=ModelConfig(pretrained="start.pt"))
    run = RunFolder(tmp_path / "run")
    run.open(config, DATA, resume=False)
    checkpoint_path(run.checkpoints, 4).mkdir(parents=True)
    same = dataclasses.replace(config, model=ModelConfig(pretrained=str(tmp_path / "start.pt")))
    assert run.check(same, resume=True) == ""
    other = dataclasses.replace(config, model=ModelConfig(pretrained="other.pt"))
    with pytest.raises(PowerclipError, match=r"model\.pretrained: was 'start\.pt', now 'other\.pt'"):
        run.check(other, resume=True)


@pytest.mark.parametrize("settings", [{"name": "local-dir:{}"}, {"pretrained": "./{}"}, {"pretrained": "local-dir:{}"}])
def test_a_start_that_has_moved_may_be_named_where_it_is(settings, tmp_path, monkeypatch):
    def config(place):
        return dataclasses.replace(CONFIG, model=ModelConfig(**{key: v.format(place) for key, v in settings.items()}))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    run = RunFolder(tmp_path / "run")
    run.open(config("start"), DATA, resume=False)
    checkpoint_path(run.checkpoints, 4).mkdir(parents=True)
    assert run.check(config("../" + tmp_path.name + "/start"), resume=True) == ""
    (tmp_path / "moved").mkdir()
    with pytest.raises(PowerclipError, match="was trained with other settings"):
        run.check(config("moved"), resume=True)
    (tmp_path / "start").rmdir()
    assert re.fullmatch(r"model\.\w+: was '.*start', now '.*moved'", run.check(config("moved"), resume=True))
    with pytest.raises(PowerclipError, match="was trained with other settings"):
        run.check(config("nowhere"), resume=True)


@pytest.mark.parametrize("setting", ["name", "pretrained"])
def test_weights_in_place_of_a_model_known_by_name_have_not_moved(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    before, after = {"name": ("ViT-B-16", "local-dir:start"), "pretrained": ("openai", "start")}[setting]
    run = RunFolder(tmp_path / "run")
    run.open(dataclasses.replace(CONFIG, model=ModelConfig(**{setting: before})), DATA, resume=False)
    checkpoint_path(run.checkpoints, 4).mkdir(parents=True)
    with pytest.raises(PowerclipError, match=f"model.{setting}: was '{before}'"):
        run.check(dataclasses.replace(CONFIG, model=ModelConfig(**{setting: after})), resume=True)


def test_settings_that_decide_nothing_may_change_unreported(run):
    other = dataclasses.replace(CONFIG, log_every_steps=1, device="cpu", data=DataConfig(workers=2))
    assert run.check(other, resume=True) == ""


def test_a_longer_run_is_reported(run):
    other = dataclasses.replace(CONFIG, steps=9, optim=OptimConfig(learning_rate=0.5))
    assert run.check(other, resume=True) == "optim.learning_rate: was 0.001, now 0.5, steps: was 8, now 9"


def test_other_settings_are_refused_once_there_is_a_checkpoint(run):
    other = dataclasses.replace(CONFIG, seed=7, data=DataConfig(flip=0.5), steps=9)
    with pytest.raises(PowerclipError, match=r"other settings \(data.flip: was 0.0, now 0.5, seed: was 0, now 7\)"):
        run.check(other, resume=True)
    checkpoint_path(run.checkpoints, 4).rmdir()
    assert run.check(other, resume=True) == ""


@pytest.mark.parametrize("trace", ["status", "model"])
def test_a_run_that_has_lost_its_checkpoints_is_not_started_again(trace, run):
    checkpoint_path(run.checkpoints, 4).rmdir()
    assert run.open(CONFIG, DATA, resume=True) is None  # it had not reached one, as far as its folder says
    if trace == "model":  # and a status that a crash has cut
        run.model.mkdir()
    run.status_file.write_text('{"step": 4}' if trace == "status" else '{"step": ')
    before = run.config_file.read_text()
    other = dataclasses.replace(CONFIG, seed=7)
    with pytest.raises(PowerclipError, match=r"other settings \(seed: was 0, now 7\)"):
        run.check(other, resume=True)
    steps = "4" if trace == "status" else "some"
    start = "" if trace == "status" else f"start another from its model with --model.pretrained {run.model}, or "
    with pytest.raises(
        PowerclipError,
        match=f"a run that did {steps} steps but no checkpoint to continue from; {start}name another folder",
    ):
        run.open(CONFIG, DATA, resume=True)
    assert run.config_file.read_text() == before


def test_a_run_resumes_from_its_newest_checkpoint(run):
    checkpoint_path(run.checkpoints, 6).mkdir()
    (run.checkpoints / ".step-00000008.tmp").mkdir()
    assert step_of(run.open(CONFIG, DATA, resume=True)) == 6
    assert run.open(CONFIG, DATA, resume=False) is None


def test_other_data_of_the_same_counts_are_refused(run):
    other = dataclasses.replace(DATA, digest="abd")
    with pytest.raises(PowerclipError, match="40 in 2 with other names or content; resume it on /data/a, http://store"):
        run.open(CONFIG, other, resume=True)
    assert run.data() == DATA


def test_other_content_of_the_same_names_and_sizes_is_refused_where_both_are_known(run):
    a, b = (dataclasses.replace(DATA, content=content) for content in "ab")
    assert step_of(run.open(CONFIG, a, resume=True)) == 4  # the run is of an earlier version
    run.record(CONFIG, a)
    with pytest.raises(PowerclipError, match="40 in 2 with other names or content"):
        run.open(CONFIG, b, resume=True)
    for same in (a, DATA):
        assert step_of(run.open(CONFIG, same, resume=True)) == 4


def test_data_that_have_moved_are_the_same(run):
    moved = dataclasses.replace(DATA, sources=("/elsewhere",))
    assert step_of(run.open(CONFIG, moved, resume=True)) == 4
    run.record(CONFIG, moved)
    assert run.data() == moved


def test_a_run_of_an_earlier_version_that_does_not_name_its_data_can_be_resumed(run):
    run.data_file.unlink()
    assert run.data() is None
    assert step_of(run.open(CONFIG, dataclasses.replace(DATA, digest="other"), resume=True)) == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"sources": "a"}', '{"samples": 1}'])
def test_a_damaged_record_of_the_data_is_named(content, run):
    run.data_file.write_text(content)
    with pytest.raises(ValueError, match=r"data\.json"):
        run.data()


def test_the_status_tells_a_finished_run_from_others(run):
    for step, finished in ((3, False), (8, False), (8, True)):
        run.write_status(step=step, steps=8, finished=finished)
        assert json.loads(run.status_file.read_text()) == {"step": step, "steps": 8, "finished": finished}
        assert run.is_finished() == finished
    for damaged in ("", "[]", "{}", '"x"'):
        run.status_file.write_text(damaged)
        assert not run.is_finished()


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (5, 100_000_000, 20_000_000):
        checkpoint_path(tmp_path, step).mkdir()
    (tmp_path / "step-7").mkdir()
    assert [step_of(path) for path in all_checkpoints(tmp_path)] == [5, 20_000_000, 100_000_000]
    assert all_checkpoints(tmp_path / "missing") == []


def test_damaged_lines_of_metrics_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n\x00\xff\n[3]\n{"loss": 1.0}\n{"step": true}\n{"step": 3.0}\n'
        b'{"step": 4, "loss": NaN, "x": 1e999, "loss_clip": 1.5}\n{"step": 5'
    )
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}, {"step": 4, "loss": None, "x": None, "loss_clip": 1.5}]
    assert read_metrics(tmp_path / "missing") == []


def hold(path, held, end):
    """Train in a folder, as far as its lock is concerned, with a loader worker that outlives this process."""
    with RunFolder(path).locked(CONFIG, resume=True):
        worker = multiprocessing.get_context("fork").Process(target=end.wait, args=(20,))
        worker.start()
        held.set()
        worker.join()


def test_two_trainings_never_share_a_folder(run, monkeypatch):
    monkeypatch.setattr(runs, "LOCK_WAIT_S", 0)
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(run.path, held, end))
    other.start()
    assert held.wait(60)
    with (
        pytest.raises(PowerclipError, match=rf"^process {other.pid} on .* is training in .*run; wait for it or end it"),
        run.locked(CONFIG, resume=True),
    ):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    end.set()  # its worker ends
    monkeypatch.setattr(runs, "LOCK_WAIT_S", 20)
    with run.locked(CONFIG, resume=True):
        assert f"process {os.getpid()} on" in run.lock_file.read_text()


def test_a_lock_is_released_and_is_not_a_use_of_the_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    for _ in range(2):
        with run.locked(CONFIG, resume=False):
            pass


def test_a_run_that_began_after_the_check_is_noticed(run):
    with pytest.raises(PowerclipError, match="is not empty"), run.locked(CONFIG, resume=False):
        pass


def test_runs_are_shown_by_their_own_names_where_these_differ():
    assert by_name([Path("a/x"), Path("b/y")]) == {"x": Path("a/x"), "y": Path("b/y")}
    assert by_name([Path("a/x"), Path("b/x")]) == {"a/x": Path("a/x"), "b/x": Path("b/x")}
    assert by_name([Path()]) == {".": Path()}
