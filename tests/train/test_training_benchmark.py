"""benchmarks/training.py, with the smallest towers."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


@pytest.mark.slow
def test_open_clip_s_loop_and_ours_take_turns(monkeypatch, capsys):
    options = ["--model", "tiny", "--batch-size", "4", "--rounds", "2", "--steps-per-round", "2", "--batches", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setenv("COLUMNS", "140")
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    for trainer in ("open_clip", "clip", "powerclip"):
        assert re.search(rf"│ {trainer} +│ +[0-9.]+ │ +[0-9]+-[0-9]+ │ +[0-9.]+ │ +[0-9.]+ │", printed), trainer
