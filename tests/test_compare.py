import csv
import dataclasses
import io
import json

import pytest
from rich.console import Console

from powerclip import compare as module
from powerclip.compare import EvaluationPlan, compare
from powerclip.config import ModelConfig, load_config
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.recipes import scenes_tiny
from powerclip.report.comparison import Spread, comparison_csv, comparison_markdown, comparison_plot, spread_rows
from powerclip.scenes import generate
from tests.support.models import write_tiny

RESULTS = {
    "clip": [{"t": {"acc@1": 0.1, "acc@5": 0.5}}, {"t": {"acc@1": 0.3, "acc@5": 0.5}}],
    "powerclip": [{"t": {"acc@1": 0.4}}, {}],
}


@pytest.fixture
def case(tmp_path):
    write_shards(generate("train", count=16, seed=0), tmp_path / "data")
    base = dataclasses.replace(
        scenes_tiny(), model=ModelConfig(name=write_tiny(tmp_path)), batch_size=8, steps=2, device="cpu", seed=3
    )
    return base, {
        "data": tmp_path / "data",
        "output": tmp_path / "compare",
        "evaluation": EvaluationPlan(suite="scenes", size=4),
        "console": Console(file=io.StringIO(), width=160),
    }


def test_a_comparison_trains_all_evaluates_all_and_skips_what_is_finished(case, monkeypatch):
    config, arguments = case
    table = compare(config, objectives=("siglip", "powerclip"), seeds=2, **arguments)
    output = arguments["output"]
    runs = {f"{name}-seed-{seed}" for name in ("siglip", "powerclip") for seed in (3, 4)}
    assert {path.name for path in output.iterdir() if path.is_dir()} == runs
    for run in runs:
        found = load_config(output / run / "config.yaml")
        assert f"{found.objective.name}-seed-{found.seed}" == run
    assert "| task | metric | siglip | powerclip |" in table.read_text()
    assert "2 seeds each, mean ± standard deviation" in table.read_text()
    lines = list(csv.DictReader(io.StringIO((output / "comparison.csv").read_text())))
    first = next(line for line in lines if (line["task"], line["metric"]) == ("scenes-quadruples", "text"))
    tasks = [json.loads((output / f"siglip-seed-{n}" / "evaluation.json").read_text())["tasks"] for n in (3, 4)]
    assert [float(first["run_0"]), float(first["run_1"])] == [t["scenes-quadruples"]["text"] for t in tasks]
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")

    def never(*_arguments, **_options):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(module, "train", never)
    before = table.read_text()
    assert compare(config, objectives=("siglip", "powerclip"), seeds=2, **arguments).read_text() == before
    with pytest.raises(PowerclipError, match="siglip-seed-3 was trained with other settings"):
        compare(dataclasses.replace(config, steps=3), objectives=("siglip",), seeds=1, **arguments)
    with pytest.raises(PowerclipError, match="name another --output"):
        compare(config, objectives=("siglip",), seeds=1, **{**arguments, "evaluation": EvaluationPlan(size=5)})
    with pytest.raises(AssertionError, match="trained again"):
        compare(config, objectives=("siglip",), seeds=3, **arguments)


def test_nothing_to_compare_is_refused_and_leaves_no_folder(case):
    config, arguments = case
    for objectives, seeds in (((), 1), (("clip",), 0), (("clip", "clip"), 1)):
        with pytest.raises(PowerclipError, match="name each once"):
            compare(config, objectives=objectives, seeds=seeds, **arguments)
    assert not arguments["output"].exists()


def test_mean_and_sample_standard_deviation():
    spread = Spread(values=(0.1, 0.3))
    assert spread.mean == pytest.approx(0.2)
    assert spread.deviation == pytest.approx((2 * 0.1**2) ** 0.5)
    assert str(spread) == "20.0 ± 14.1"
    assert str(Spread(values=(0.25,))) == "25.0"


def test_a_metric_that_a_seed_lacks_is_left_open():
    assert spread_rows(RESULTS) == [("t", "acc@1", [Spread(values=(0.1, 0.3)), None])]
    assert "| t | acc@1 | 20.0 ± 14.1 | - |" in comparison_markdown(RESULTS)
    assert comparison_csv(RESULTS).splitlines()[0] == "task,metric,objective,mean,standard_deviation,run_0,run_1"
    assert len(comparison_csv(RESULTS).splitlines()) == 3
    assert len(comparison_plot(RESULTS).axes[0].patches) == 1
