import csv
import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from rich.console import Console

from powerclip import load
from powerclip.compare import compare, finish_runs
from powerclip.config import EvaluateConfig, ModelConfig, load_config
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.evaluate.grounding import METRICS
from powerclip.files import write_json
from powerclip.recipes import scenes_tiny
from powerclip.scenes import generate
from powerclip.train.step import Engine
from tests.support.models import write_tiny


@pytest.fixture
def case(tmp_path):
    write_shards(generate("train", count=16, seed=0), tmp_path / "data")
    base = dataclasses.replace(
        scenes_tiny(), model=ModelConfig(name=write_tiny(tmp_path)), batch_size=8, steps=2, device="cpu", seed=3
    )
    return {"siglip": base.with_objective("siglip"), "all pairs": base}, {
        "data": tmp_path / "data",
        "output": tmp_path / "compare",
        "evaluation": EvaluateConfig(suite=("scenes",), size=4),
        "console": Console(file=io.StringIO(), width=160),
    }


def trained_at(output):
    """When each run in a folder was last trained."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/status.json")}


def test_a_comparison_trains_all_evaluates_all_and_skips_what_is_finished(case):
    configs, arguments = case
    table = compare(configs, seeds=2, **arguments)
    output = arguments["output"]
    runs = {f"{name}-seed-{seed}" for name in ("siglip", "all pairs") for seed in (3, 4)}
    assert {path.name for path in output.iterdir() if path.is_dir()} == runs
    for run in runs:
        found = load_config(output / run / "config.yaml")
        assert found == dataclasses.replace(configs[run[:-7]], seed=int(run[-1]))
    assert "| task | metric | siglip | all pairs |" in table.read_text()
    assert "2 seeds each, mean ± standard deviation" in table.read_text()
    lines = list(csv.DictReader(io.StringIO((output / "comparison.csv").read_text())))
    first = next(line for line in lines if (line["task"], line["metric"]) == ("scenes-quadruples", "text"))
    tasks = [json.loads((output / f"siglip-seed-{n}" / "evaluation.json").read_text())["tasks"] for n in (3, 4)]
    assert [float(first["run_0"]), float(first["run_1"])] == [t["scenes-quadruples"]["text"] for t in tasks]
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")

    times, before = trained_at(output), table.read_text()
    assert compare(configs, seeds=2, **arguments).read_text() == before
    with pytest.raises(PowerclipError, match=r"siglip-seed-3 was trained with other settings \(steps: was 2, now 3\)"):
        compare({"siglip": dataclasses.replace(configs["siglip"], steps=3)}, seeds=1, **arguments)
    with pytest.raises(PowerclipError, match=r"'size': 4.*not on .*'size': 5.*; name another --output"):
        compare(configs, seeds=1, **{**arguments, "evaluation": EvaluateConfig(suite=("scenes",), size=5)})
    compare({"siglip": configs["siglip"]}, seeds=3, **arguments)
    said = "does not name them: all pairs-seed-3, all pairs-seed-4\n"
    assert arguments["console"].file.getvalue().endswith(said)
    after = trained_at(output)
    assert after.keys() - times.keys() == {"siglip-seed-5"}
    assert {name: after[name] for name in times} == times


def test_runs_on_other_data_are_not_compared_and_the_same_path_may_be_spelled_otherwise(case, monkeypatch):
    configs, arguments = case
    data, one = arguments["data"], {"siglip": configs["siglip"]}
    compare(one, seeds=1, **arguments)
    monkeypatch.chdir(data.parent)
    compare(one, seeds=1, **{**arguments, "data": Path("data")})
    with pytest.raises(PowerclipError, match="name another --output"):
        compare(one, seeds=1, **{**arguments, "data": Path("other")})
    before = trained_at(arguments["output"])
    shutil.rmtree(data)
    write_shards(generate("train", count=16, seed=1), data)
    with pytest.raises(PowerclipError, match=r"siglip-seed-3 was trained on 16 samples .* with other names or content"):
        compare(one, seeds=2, **arguments)
    assert trained_at(arguments["output"]) == before


def test_both_kinds_of_clip_stand_side_by_side_and_their_grounding_is_measured(case):
    """By averages, as PowerCLIP pools, and by the class token and the end of the text, as CLIP was published."""
    configs, arguments = case
    averages = configs["siglip"].with_objective("clip")
    tower = dataclasses.replace(
        averages, model=dataclasses.replace(averages.model, image_pool="tower", text_pool="tower")
    )
    table = compare({"averages": averages, "tower": tower}, seeds=1, **arguments)
    assert "zero-shot, % ± sampling error; in brackets: chance" in table.read_text()
    lines = list(csv.DictReader(io.StringIO((arguments["output"] / "comparison.csv").read_text())))
    grounded = {(line["metric"], line["objective"]) for line in lines if line["task"] == "scenes-grounding"}
    assert grounded == {(m, name) for m in METRICS for name in ("averages", "tower")}
    models = [load(arguments["output"] / f"{name}-seed-3")[0] for name in ("averages", "tower")]
    assert [(model.image_pool, model.text_pool) for model in models] == [("avg", "avg"), ("tower", "tower")]


def test_nothing_to_compare_is_refused_and_leaves_no_folder(case):
    configs, arguments = case
    for number, seeds in ((0, 1), (2, 0)):
        with pytest.raises(PowerclipError, match=f"got {number} configs with {seeds} seeds to compare"):
            compare(dict(list(configs.items())[:number]), seeds=seeds, **arguments)
    with pytest.raises(PowerclipError, match=r"unknown suite 'scens'; did you mean scenes"):
        compare(configs, seeds=1, **{**arguments, "evaluation": EvaluateConfig(suite=("scens",))})
    assert not arguments["output"].exists()


def test_a_run_is_evaluated_once_after_each_training(case):
    configs, arguments = case
    run, evaluated = arguments["output"] / "run", []

    def evaluate(path):
        evaluated.append(path)
        pending = ["u"] if len(evaluated) == 1 else []
        write_json(path / "evaluation.json", {"tasks": {"t": {"acc@1": 0.5}}, "pending": pending})

    for steps, expected in ((2, [run]), (2, [run] * 2), (2, [run] * 2), (3, [run] * 3)):  # incomplete, again, longer
        config = dataclasses.replace(configs["siglip"], steps=steps)
        assert finish_runs({run: config}, data=arguments["data"], evaluate=evaluate, console=arguments["console"])
        assert evaluated == expected
        assert json.loads((run / "status.json").read_text())["step"] == steps


def test_a_finished_run_without_its_model_gets_it(case):
    configs, arguments = case
    compare({"siglip": configs["siglip"]}, seeds=1, **arguments)
    run = arguments["output"] / "siglip-seed-3"
    shutil.rmtree(run / "model")
    (run / "evaluation.json").unlink()
    compare({"siglip": configs["siglip"]}, seeds=1, **arguments)
    load(run)


def test_a_run_that_was_evaluated_on_something_else_is_evaluated(case):
    configs, arguments = case
    run, suites = arguments["output"] / "run", []

    def evaluate(path):
        suites.append("pairs scenes" if suites else "pairs")
        write_json(path / "evaluation.json", {"tasks": {"t": {"acc@1": 0.5}}, "suite": suites[-1]})

    for expected in (1, 2, 2):
        finish = {"data": arguments["data"], "console": arguments["console"], "suites": ["scenes"]}
        assert finish_runs({run: configs["siglip"]}, evaluate=evaluate, **finish)
        assert len(suites) == expected


def test_an_interrupted_run_is_not_evaluated_and_continues(case):
    configs, arguments = case
    run = arguments["output"] / "siglip-seed-3"
    arguments["output"].mkdir()
    real, step = Engine.step, []

    def interrupted(engine, pieces, number):
        step.append(number)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(engine, pieces, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        assert compare({"siglip": configs["siglip"]}, seeds=1, **arguments) is None
    assert step == [0]
    assert "Run the same command to continue." in arguments["console"].file.getvalue()
    assert not (run / "evaluation.json").exists()
    assert compare({"siglip": configs["siglip"]}, seeds=1, **arguments).exists()
    assert json.loads((run / "status.json").read_text()) == {"step": 2, "steps": 2, "finished": True}
