import dataclasses
import io
import json

import pytest
from rich.console import Console

from powerclip.demo import demo_configs, run_demo


@pytest.mark.slow
def test_the_demo_leaves_runs_results_and_a_page(tmp_path):
    configs = {
        name: dataclasses.replace(config, batch_size=8, checkpoint_every_steps=2)
        for name, config in demo_configs(steps=3, seed=1).items()
    }
    console = Console(file=io.StringIO(), width=120)
    report = run_demo(tmp_path, configs, console=console, scenes=16, images=14)
    table = console.file.getvalue()
    for name in ("clip", "powerclip"):
        tasks = json.loads((tmp_path / name / "evaluation.json").read_text())["tasks"]
        assert {"scenes-object", "scenes-grounding", "scenes-segmentation"} <= tasks.keys()
        assert name in table
    assert "scenes-retrieval-powerset" in tasks  # powerclip's, the last
    assert f"{100 * tasks['scenes-object']['acc@1']:.1f}" in table
    page = report.read_text()
    assert page.count("data:image/webp;base64,") >= 3
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    trained = (tmp_path / "clip" / "status.json").stat().st_mtime_ns
    assert run_demo(tmp_path, configs, console=console, scenes=16, images=14) == report
    assert (tmp_path / "clip" / "status.json").stat().st_mtime_ns == trained


def test_the_two_runs_differ_in_the_objective_alone():
    clip, powerclip_ = demo_configs(steps=5, seed=3).values()
    assert (clip.objective.name, powerclip_.objective.name) == ("clip", "powerclip")
    assert clip.with_objective("powerclip") == powerclip_
    assert (clip.steps, clip.seed) == (5, 3)
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        demo_configs(steps=0)
