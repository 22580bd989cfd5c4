import io
import json

import pytest
from rich.console import Console

from powerclip import demo


@pytest.mark.slow
def test_the_demo_leaves_runs_results_and_a_page(tmp_path, monkeypatch):
    def small(**options):
        configs = demo_configs(**options)
        return {
            name: type(c)(**{**vars(c), "batch_size": 8, "checkpoint_every_steps": 2}) for name, c in configs.items()
        }

    demo_configs = demo.demo_configs
    monkeypatch.setattr(demo, "demo_configs", small)
    console = Console(file=io.StringIO(), width=120)
    report = demo.run_demo(tmp_path, steps=3, seed=1, console=console, scenes=16, images=14)
    table = console.file.getvalue()
    for name in ("clip", "powerclip"):
        tasks = json.loads((tmp_path / name / "evaluation.json").read_text())["tasks"]
        assert len(tasks) == 7
        assert name in table
    assert f"{100 * tasks['scenes-object']['acc@1']:.1f}" in table
    page = report.read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert "http" not in page.replace("http://www.w3.org", "")
    again = demo.run_demo(tmp_path, steps=3, seed=1, console=console, scenes=16, images=14)
    assert again == report


def test_the_two_runs_differ_in_the_powerset_weight_alone():
    clip, powerclip_ = demo.demo_configs(steps=5, seed=3).values()
    assert clip.objective.powerset_weight == 0
    assert powerclip_.objective.powerset_weight > 0
    same = {**vars(clip), "objective": powerclip_.objective}
    assert same == vars(powerclip_)
    assert (clip.steps, clip.seed) == (5, 3)
