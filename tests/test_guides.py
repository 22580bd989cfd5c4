"""The commands and programs of the guides run as they are printed."""

import csv
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import powerclip
from powerclip import cli
from powerclip.model import save
from powerclip.recipes import recipe
from powerclip.runs import read_metrics
from tests.support.colours import NAMES, square
from tests.support.layouts import webdataset
from tests.support.models import TINY
from tests.support.pretrained import SMALL, local_dir, theirs_of

DOCS = Path(__file__).parents[1] / "docs"


def blocks(guide, language):
    """The guide's programs in a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / guide).read_text(encoding="utf-8"), re.DOTALL)


def run_commands(guide, **replaced):
    """Run its powerclip commands in this process; variables are what it sets them to, unless replaced."""
    variables, ran = {}, []
    for line in "\n".join(blocks(guide, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[assigned[1]] = replaced.pop(assigned[1])
        elif words:
            assert words[0] == "powerclip", line
            argv = [variables[word[1:]] if word.startswith("$") else word for word in words[1:]]
            assert cli.main(argv) == 0, line
            ran.append(argv[0])
    assert not replaced, "the guide sets no such variable"
    return ran


def write_pairs(folder, name, count):
    """A table of pictures of one colour."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "caption"])
        for i in range(count):
            square(NAMES[i % 3]).resize((40 + i, 40)).save(folder / f"{name}{i}.png")
            table.writerow([f"{name}{i}.png", f"{i} {NAMES[i % 3]} boxes on a table"])


@pytest.mark.slow
def test_the_guide_to_fine_tuning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = recipe("finetune_open_clip")
    here = dataclasses.replace(base, data=dataclasses.replace(base.data, workers=0), log_every_steps=1, device="cpu")
    monkeypatch.setattr(cli, "recipe", lambda name: here)
    write_pairs(tmp_path / "photos", "train", 128)
    write_pairs(tmp_path / "photos", "test", 6)
    webdataset(tmp_path / "benchmarks" / "cifar10", [(n, str(i).encode()) for i, n in enumerate(NAMES)], "cls")
    theirs = theirs_of(SMALL)
    local_dir(tmp_path / "clip", theirs, SMALL)
    ran = run_commands("finetune.md", START=f"local-dir:{tmp_path / 'clip'}")
    assert {name: ran.count(name) for name in ran} == {"prepare": 2, "evaluate": 4, "train": 3, "interpolate": 3}
    assert len([line for line in read_metrics(Path("runs/tuned/metrics.jsonl")) if "loss" in line]) == 2 * base.epochs
    weights = {
        name: powerclip.load(f"runs/{name}")[0].state_dict() for name in ("tuned", "final", "frozen-image", "lora")
    }
    for name, start in theirs.state_dict().items():
        between = (start + weights["tuned"][f"backbone.{name}"]) / 2
        torch.testing.assert_close(weights["final"][f"backbone.{name}"], between, rtol=1e-5, atol=1e-6)
        if name.startswith("visual."):
            assert torch.equal(weights["frozen-image"][f"backbone.{name}"], start)
    for path in ("between", "between-general"):
        assert "| 0 | 0.25 | 0.5 | 0.75 | 1 |" in Path(f"runs/{path}/interpolation.md").read_text()
    (program,) = blocks("finetune.md", "python")
    names = {}
    exec(program, names)
    assert names["text"].shape == (1, 12)


@pytest.mark.parametrize("image_pool", ["avg", "tower"])
def test_the_guide_to_dense_features(image_pool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(TINY))
    torch.manual_seed(0)
    save(powerclip.create_model("small.json", image_pool=image_pool), tmp_path / "runs" / "scenes" / "model")
    Image.effect_mandelbrot((320, 240), (-2, -1, 1, 1), 50).convert("RGB").save("photo.jpg")
    names = {}
    for program in blocks("dense-features.md", "python"):
        exec(program, names)
    model = names["model"]
    assert names["maps"].shape == (3, *model.grid_size)
    if image_pool == "avg":  # as the guide says
        torch.testing.assert_close(names["contributions"].mean(dim=(1, 2)), names["scores"])
    assert names["regions"].shape == (1, 2, 16)
    assert names["present"].all()
    assert names["found"].subsets.shape == (len(names["encoded"].phrase_spans), 2)
