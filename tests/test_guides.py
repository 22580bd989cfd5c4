"""The commands and programs of the documentation run as they are printed, on small data; the others are read."""

import csv
import dataclasses
import json
import re
import shutil
import tomllib
from pathlib import Path

import clip_benchmark.cli
import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import powerclip
from powerclip import cli
from powerclip.config import ModelConfig, PrepareConfig
from powerclip.evaluate.datasets.fine_grained import SUGARCREPE_PP
from powerclip.model import save
from powerclip.prepare import prepare
from powerclip.recipes import RECIPES, recipe
from powerclip.runs import read_metrics
from powerclip.train import train
from tests.support.colours import NAMES, png, square
from tests.support.guides import NOT_RUN, PAGES, ROOT, blocks, steps, why_not_run
from tests.support.layouts import picture, webdataset, write_json
from tests.support.models import TINY
from tests.support.pretrained import SMALL, local_dir, siglip_folder, theirs_of
from tests.support.runs import tiny_run
from tests.support.tars import write_tar

OWN_TESTS = ("docs/finetune.md", "docs/dense-features.md")
"""Pages that are run by tests below, which know more of what should come out."""
LESS = {
    "--steps": "2",
    "--batch-size": "4",
    "--workers": "1",
    "--count": "24",
    "--seeds": "1",
    "--parallel.accumulate": "2",
}
"""Values in place of the printed ones."""
GIVEN = {"evaluate": ["--size", "4"], "compare": ["--size", "4"]}
"""Options in addition to the printed ones."""
DOWNLOADED = {"openai": "None", "webli": "None", "ViT-B-16-SigLIP2": "local-dir:siglip"}
"""Small models in place of those that would be downloaded."""


def understand(words):
    """Fail unless the program takes these arguments."""
    match words:
        case ["powerclip", name, *arguments] | [
            "torchrun", "--nproc-per-node", _, "-m", "powerclip.cli", name, *arguments
        ]:  # fmt: skip
            cli.parse(name, arguments)
        case ["make", *targets]:
            known = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
            assert set(targets) <= set(known)
        case ["python", "-m", "pytest", *tests]:
            assert all((ROOT / test).exists() for test in tests)
        case [".venv/bin/python" | "python", script, *arguments]:
            text = (ROOT / script).read_text(encoding="utf-8")
            if "clip_benchmark" in text:
                text += Path(clip_benchmark.cli.__file__).read_text(encoding="utf-8")
            for option in (word for word in arguments if word.startswith("--")):
                field = option[2:].replace("-", "_")
                assert re.search(rf"""["']{option}["']|\n    {field}: """, text), option
        case [".", ".venv/bin/activate"]:
            pass
        case ["pip", "install", *packages]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(packages) <= {f"powerclip[{extra}]" for extra in extras}
        case _:
            pytest.fail(f"a program that no test knows: {words}")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_understood(page):
    for step in steps(page):
        compile(step, page, "exec") if isinstance(step, str) else understand(step)
    for language, text in blocks(page):
        if language == "json":
            json.loads(text)
        assert language in ("bash", "python", "json", "csv", "text", ""), f"a {language} block that no test reads"


def test_options_and_extras_that_texts_name_exist(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    options = set()
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        options |= set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for page in set(PAGES) - {"CHANGELOG.md", "docs/LOG.md"}:  # what was
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        others = re.compile(r"python |benchmarks/|sha256sum|tar |tensorboard|torchrun")
        spans = " ".join(span for span in re.findall(r"`([^`]+)`", text) if not others.search(span))
        assert set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", spans)) - options == set(), page
        assert set(re.findall(r"powerclip\[(\w+)\]", text)) <= extras, page


def test_commands_in_docstrings_are_understood():
    recipes = [span for make in RECIPES.values() for span in re.findall(r"``([^`]+)``", make.__doc__)]
    examples = [command.__doc__.partition("Example: ")[2] for command in cli.COMMANDS.values()]
    found = re.findall(r"powerclip [a-z]+ [^;&]+", re.sub(r"\s+", " ", " ; ".join(recipes + examples)))
    assert len(found) > len(RECIPES) + len(cli.COMMANDS)
    for line in found:
        understand(line.split())


def test_each_reason_not_to_run_a_command_is_of_one():
    commands = [step for page in PAGES for step in steps(page) if not isinstance(step, str)]
    assert {why_not_run(words) for words in commands} == {None, *NOT_RUN}


def write_table(path, head, rows, *, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows] if head else rows)


def write_benchmarks(folder):
    """A data set of each suite that the pages name."""
    labels = [(name, str(i).encode()) for i, name in enumerate(NAMES)]
    for name in ("cifar10", "imagenetv2", "imagenet1k"):
        webdataset(folder / name, labels, "cls")
    webdataset(folder / "cifar10", labels, "cls", split="train")
    webdataset(folder / "flickr8k", [("red", b"a red dog"), ("blue", b"a blue cat")], "txt", kind="retrieval")
    picture(folder / "winoground" / "images" / "a.png", "red")
    picture(folder / "winoground" / "images" / "b.png", "blue")
    picture(folder / "sugarcrepe++" / "val2017" / "a.png", "red")
    picture(folder / "whatsup" / "val2017" / "000000000139.jpg", "blue")
    line = {"image_0": "a", "image_1": "b", "caption_0": "a red dog", "caption_1": "a blue cat"}
    write_json(folder / "winoground" / "examples.jsonl", line)
    row = {"id": 0, "filename": "a.png", "caption": "red", "caption2": "a red one", "negative_caption": "blue"}
    for kind in SUGARCREPE_PP:
        write_json(folder / "sugarcrepe++" / "data" / f"{kind}.json", [row])
    write_json(folder / "whatsup" / "coco_qa_one_obj.json", [[139, "a dog on the left", "a dog on the right"]])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the data and models that the pages name."""
    here = tmp_path_factory.mktemp("world")
    captions = [f"a dog beside {i} {NAMES[i % 3]} boxes" for i in range(12)]
    names = ["cat", "trip/dog", *(f"p{i}" for i in range(2, 12))]
    for name, folder in ((n, f) for f in ("photos", "heldout", "SOURCE") for n in names):
        path = here / folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        square(NAMES[names.index(name) % 3]).resize((40 + names.index(name), 40)).convert("RGB").save(path)
        path.with_suffix(".txt").write_text(captions[names.index(name)])
    paths = [f"photos/{name}.jpg" for name in names]
    write_table(here / "photos.csv", ["path", "caption"], zip(paths, captions, strict=True))
    shutil.copy(here / "photos.csv", here / "heldout.csv")
    write_table(here / "photos.tsv", ["file", "title"], zip(paths, captions, strict=True), delimiter="\t")
    write_table(here / "captions.tsv", None, zip(captions, paths, strict=True), delimiter="\t")
    rows = [(f"{i:09}", f"http://images/{i}.png", f"new {c}", f"long {c}") for i, c in enumerate(captions)]
    write_table(here / "recaptioned.csv", ["image_id", "short", "long"], ((k, s, t) for k, _, s, t in rows))
    parquet.write_table(
        pa.table({"url": [r[1] for r in rows], "caption": [r[2] for r in rows]}), here / "recaptioned.parquet"
    )
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    texts = [{"image_id": i % 3, "caption": caption} for i, caption in enumerate(captions)]
    write_json(here / "captions_train2017.json", {"images": images, "annotations": texts})
    for i, name in enumerate(NAMES):
        picture(here / "train2017" / f"{i}.png", name)
        picture(here / "flowers" / name / "a.png", name)
    tar = []
    for (key, url, short, _), caption in zip(rows, captions, strict=True):
        about = json.dumps({"url": url, "alt_text": caption})
        tar += [(f"{key}.png", png("red")), (f"{key}.txt", caption.encode()), (f"{key}.synthetic.txt", short.encode())]
        tar += [(f"{key}.json", about.encode())]
    write_tar(here / "cc12m" / "00000.tar", tar)
    saved = datasets.Dataset.from_dict({"image": [square("red")] * 4, "caption": captions[:4]})
    saved.cast_column("image", datasets.Image()).save_to_disk(here / "saved" / "train")
    write_benchmarks(here / "benchmarks")
    local_dir(here / "clip", theirs_of(SMALL), SMALL)
    siglip_folder(here / "siglip")
    data = here / "data" / "photos"
    prepare(here / "photos", data, PrepareConfig(regions="superpixels"))
    for name in ("heldout", "held-out", "mine", "scenes", "cc3m", "emoji-scenes/train-20000-of-240-seed-0"):
        shutil.copytree(data, here / "data" / name)
    train(tiny_run(here, steps=2), data=(str(data),), output=here / "runs" / "NAME", look=False)
    for name in ("scenes", "photos", "clip", "powerclip", "demo/powerclip"):
        shutil.copytree(here / "runs" / "NAME", here / "runs" / name)
    for name in ("start", "tuned"):
        save(powerclip.load(here / "clip")[0], here / "runs" / name / "model")
    return here


def smaller(name):
    """A recipe with a small model and short run."""
    config = recipe(name)
    model = ModelConfig(name="small.json")
    if config.model.pretrained:
        model = dataclasses.replace(config.model, name="local-dir:clip", pretrained=None)
    data = dataclasses.replace(config.data, workers=0)
    short = {"batch_size": 4, "steps": 2, "epochs": None, "device": "cpu", "log_every_steps": 1}
    return dataclasses.replace(config, model=model, data=data, **short)


def on_less(words):
    """A powerclip command's arguments on small data; what it makes is made anew, unless it resumes."""
    arguments = words[words.index("powerclip.cli" if words[0] == "torchrun" else "powerclip") + 1 :]
    arguments = [DOWNLOADED.get(word, word) for word in arguments] + GIVEN.get(arguments[0], [])
    for option, value in LESS.items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
    command = cli.parse(arguments[0], arguments[1:])
    output = getattr(command, "output", None)
    if output and output.is_dir() and getattr(command, "resume", "never") == "never":
        shutil.rmtree(output)
    return arguments


def runs_something(page):
    return any(isinstance(step, str) or not why_not_run(step) for step in steps(page))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:cifar10-linear-probe has one training image a class")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in OWN_TESTS and runs_something(page)])
def test_a_page_runs(page, world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "recipe", smaller)
    names = {"__name__": "__main__"}
    for step in steps(page):
        if isinstance(step, str):
            exec(step.replace("workers=8", "workers=1"), names)
        elif not why_not_run(step):
            assert cli.main(on_less(step)) == 0, (step, capsys.readouterr().err)


@pytest.mark.slow
def test_the_guide_to_fine_tuning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = recipe("finetune_open_clip")
    here = dataclasses.replace(base, data=dataclasses.replace(base.data, workers=0), log_every_steps=1, device="cpu")
    monkeypatch.setattr(cli, "recipe", lambda name: here)
    (tmp_path / "photos").mkdir()
    for name, count in (("train", 128), ("test", 6)):
        for i in range(count):
            square(NAMES[i % 3]).resize((40 + i, 40)).save(tmp_path / "photos" / f"{name}{i}.png")
        rows = [(f"{name}{i}.png", f"{i} {NAMES[i % 3]} boxes on a table") for i in range(count)]
        write_table(tmp_path / "photos" / f"{name}.csv", ["path", "caption"], rows)
    write_benchmarks(tmp_path / "benchmarks")
    theirs = theirs_of(SMALL)
    local_dir(tmp_path / "clip", theirs, SMALL)
    *commands, program = steps("docs/finetune.md", START=f"local-dir:{tmp_path / 'clip'}")
    for words in commands:
        assert cli.main(words[1:]) == 0, words
    ran = [words[1] for words in commands]
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
    for program in steps("docs/dense-features.md"):
        exec(program, names)
    model = names["model"]
    assert names["maps"].shape == (3, *model.grid_size)
    if image_pool == "avg":  # as the guide says
        torch.testing.assert_close(names["contributions"].mean(dim=(1, 2)), names["scores"])
    assert names["regions"].shape == (1, 2, 16)
    assert names["present"].all()
    assert names["found"].subsets.shape == (len(names["encoded"].phrase_spans), 2)
