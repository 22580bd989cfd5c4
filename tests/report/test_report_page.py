"""The page fetches nothing, escapes everything, and survives broken run folders and odd names."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from powerclip import create_model
from powerclip.model import save
from powerclip.phrases.tree import Phrase, PhraseTree
from powerclip.report import results_markdown, results_table, write_report
from powerclip.report.pictures import ground, picture
from powerclip.report.plots import curves, png
from powerclip.report.tables import averages, best

CAPTION = r"a $\frac$ <b> & dog"
TREE = PhraseTree(
    leaves=((0, 1), (2, 9), (10, 13), (14, 15), (16, 19)),
    phrases=(Phrase(label="NP", first=0, last=4), Phrase(label="NP", first=0, last=1)),
    parser="gold",
)


def whole_run(folder: Path, *, weight: float) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save(create_model("tiny"), folder / "model")
    (folder / "config.yaml").write_text(f"seed: 0\nloss:\n  weight: {weight}\n  name: '<i>'\n", encoding="utf-8")
    lines = [{"step": s, "samples_seen": 8 * s, "loss": 4 / s, "loss_clip": 3 / s} for s in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tasks = {"x": {"acc@1": weight}, "<u>": {"acc@1": 0.5}}
    (folder / "evaluation.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    return folder


def test_the_page_is_whole_and_fetches_nothing(tmp_path):
    runs = {
        "<clip>": whole_run(tmp_path / "one", weight=0.0),
        "power": whole_run(tmp_path / "two", weight=0.25),
    }
    output = write_report(runs, tmp_path / "deep" / "report.html")
    html = output.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 7  # the curves and six examples
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).format == "PNG"
    assert not re.search(r"<(clip|u|i)>", html)
    for said in ("&lt;clip&gt;", "&lt;u&gt;", "one seed each", "loss.weight", "What differs (1)", "mean of 2"):
        assert said in html
    assert html.count('class="n best"') == 2  # x and the mean; the other task is level
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_broken_files_of_a_run_are_said(tmp_path):
    broken = tmp_path / "broken"
    (broken / "model").mkdir(parents=True)
    (broken / "evaluation.json").write_text('{"tasks": ', encoding="utf-8")
    (broken / "config.yaml").write_text("a: [", encoding="utf-8")
    (broken / "metrics.jsonl").write_text("", encoding="utf-8")
    html = write_report({"b": broken}, tmp_path / "r.html").read_text(encoding="utf-8")
    for said in ("Not evaluated: b", "No metrics yet", "No whole model yet: b", "No readable config.yaml: b"):
        assert said in html


def test_averages_are_over_the_tasks_that_all_models_have():
    both = {
        "a": {"x": {"acc@1": 0.5}, "y": {"acc@1": 0.7}, "r": {"i2t_R@1": 0.2, "t2i_R@1": 0.4}, "q": {"group": 0.1}},
        "b": {"x": {"acc@1": 0.25}, "y": {"acc@1": 0.75}, "z": {"acc@1": 1.0}},
    }
    assert averages(both) == [("classification", "mean of 2", pytest.approx([0.6, 0.5]))]
    assert averages({"a": both["a"]})[1:] == [("retrieval", "mean of 2", pytest.approx([0.3]))]


def test_averages_of_public_suites_say_over_how_much_they_are():
    one = {"food101": {"acc@1": 0.5}, "pets": {"acc@1": 0.7, "mean_per_class": 0.9}, "imagenet-a": {"acc@1": 0.1}}
    captions = {"i2t_R@1": 0.2, "t2i_R@1": 0.4}
    one |= dict.fromkeys(("mscoco_captions", "mscoco_captions-all-captions", "flickr8k", "flickr30k"), captions)
    assert averages({"a": one}) == [
        ("classification", "mean of 2 of 17", [pytest.approx(0.6)]),
        ("classification, CLIP's metrics", "mean of 2 of 17", [pytest.approx(0.7)]),
        ("robustness", "mean of 1 of 6", [0.1]),
        ("retrieval", "mean of 6", [pytest.approx(0.3)]),
    ]
    found = averages({"a": one, "b": {"food101": {"acc@1": 0.25}}})
    assert found[0] == ("classification", "mean of 1 of 17", [0.5, 0.25])


@pytest.mark.parametrize(("values", "top"), [([0.1, 0.2], 0.2), ([0.2, 0.2], None), ([0.1, None], None), ([], None)])
def test_best_marks_a_difference_only(values, top):
    assert best(values) == top


def test_tables_escape_names():
    results = {"p|q": {"x": {"acc@1": 0.5}}, "[red]": {"x": {"acc@1": 0.25}}}
    assert results_markdown(results).splitlines()[0] == r"| task | metric | p\|q | [red] |"
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table(results))
    assert "[red]" in console.file.getvalue()


def test_pictures_take_odd_names_and_missing_fields():
    lines = [{"step": 1, "loss_clip": 2.0, "logit_scale": None}, {"step": 2, "loss_clip": 1.0}]
    figure = curves({"_run": lines, r"$\frac$": [], "c": lines})
    assert png(figure).startswith(b"\x89PNG")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["_run", r"$\frac$", "c"]


def test_the_heat_of_one_region_is_its_similarity():
    image = Image.linear_gradient("L").convert("RGB")
    masks = torch.zeros(1, 64, dtype=torch.bool)
    masks[0, 9:14] = True
    signs = set()
    for seed in range(4):  # untrained models: the region grounds the phrases of some and not of others
        torch.manual_seed(seed)
        found = ground(create_model("tiny").eval(), image, CAPTION, TREE, masks=masks)
        assert [phrase.text for phrase in found] == [CAPTION, r"a $\frac$"]
        for phrase in found:
            signs.add(phrase.score > 0)
            assert phrase.heat.flatten()[masks[0]].tolist() == pytest.approx([phrase.score] * 5)
            assert phrase.heat.flatten()[~masks[0]].eq(0).all()
    assert signs == {False, True}
    assert png(picture(image, CAPTION, {"$m$": found})).startswith(b"\x89PNG")  # dollars are no formula
