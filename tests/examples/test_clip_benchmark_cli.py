"""clip_benchmark's command line on a powerclip model, as the example starts it."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import pytest

import powerclip
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets.clip_benchmark import read_webdataset
from powerclip.model import save
from tests.support.layouts import webdataset

EXAMPLE = Path(__file__).parents[2] / "examples" / "clip_benchmark_cli.py"


def test_the_command_line_gives_our_recalls(tmp_path, monkeypatch):
    colours = ["red", "green", "blue"]
    folder = webdataset(tmp_path / "d", [(c, f"a {c} one".encode()) for c in colours], "txt", kind="retrieval")
    model = save(powerclip.create_model("tiny"), tmp_path / "model")
    spec = importlib.util.spec_from_file_location("clip_benchmark_cli", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = {
        "model_type": "powerclip",
        "model": model,
        "pretrained": "none",
        "dataset": "wds/colours",
        "dataset_root": folder,
        "task": "zeroshot_retrieval",
        "recall_k": 1,
        "num_workers": 0,
        "output": tmp_path / "out.json",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "eval", "--no_amp", *words])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        module.cli.main()
    theirs = json.loads((tmp_path / "out.json").read_text())["metrics"]
    ours = evaluate_tasks(*powerclip.load(model), read_webdataset(folder, "colours"))["colours"]
    assert theirs["image_retrieval_recall@1"] == pytest.approx(ours["t2i_R@1"])
    assert theirs["text_retrieval_recall@1"] == pytest.approx(ours["i2t_R@1"])
