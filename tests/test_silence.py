import hashlib
import importlib
import sys
import time
import types

import pytest

from powerclip import cli, silence
from powerclip.files import SUMS, checksums, find_damaged
from powerclip.progress import wait
from powerclip.silence import broken_silence


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(silence, "AFTER_S", 0.2)
    monkeypatch.delenv("RANK", raising=False)


def said(capsys):
    return capsys.readouterr().err.splitlines()


def test_what_is_slow_is_named_once_by_its_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: time.sleep(1.0) or hashlib.new(name))
    (tmp_path / SUMS).write_text(checksums(tmp_path, lambda paths: ["0"] * len(paths)))
    with broken_silence("powerclip test"):
        assert find_damaged(tmp_path) == "file"
    assert said(capsys) == ["powerclip test: still at work (in powerclip.files, tests)"]


def test_a_slow_import_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "slow_thing.py").write_text("import time\ntime.sleep(0.6)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with broken_silence("powerclip test"):
        importlib.import_module("slow_thing")
    assert said(capsys) == ["powerclip test: still at work (importing slow_thing)"]


def test_a_long_training_is_one_thing(capsys):
    """Whichever of its modules, and of the libraries, it is in when somebody looks."""
    loop = types.ModuleType("powerclip.train.loop")
    loop.run = types.FunctionType((lambda calls: [call() for call in calls]).__code__, loop.__dict__)
    inner = types.ModuleType("powerclip.model.towers")
    inner.time = time
    inner.run = types.FunctionType((lambda: time.sleep(0.5)).__code__, inner.__dict__)
    with broken_silence("powerclip test"):
        loop.run([inner.run, lambda: time.sleep(0.5), inner.run])
    assert said(capsys) == ["powerclip test: still at work (in powerclip.train.loop)"]


def test_nothing_is_said_while_something_else_is(capsys):
    with broken_silence("powerclip test"):
        for _ in range(12):
            print("word")
            time.sleep(0.05)
    assert said(capsys) == []
    write = sys.stdout.write
    with broken_silence("powerclip test"):
        assert sys.stdout.write != write
    assert sys.stdout.write == write


def test_waiting_is_not_work(capsys):
    with broken_silence("powerclip test"):
        wait(0.6)
    assert said(capsys) == []


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with broken_silence("powerclip test"):
        time.sleep(0.6)
    assert said(capsys) == []


def test_the_commands_break_their_silence(monkeypatch, capsys):
    class Slow:
        def run(self):
            time.sleep(0.6)

    monkeypatch.setattr(cli, "parse", lambda name, argv: Slow())
    assert cli.main(["report"]) == 0
    assert said(capsys) == ["powerclip report: still at work (in powerclip.cli, tests)"]
