"""The page fetches nothing, escapes everything, and survives broken run folders and odd names."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from powerclip import create_model
from powerclip.errors import PowerclipError
from powerclip.model import save
from powerclip.report import write_report
from tests.support.runs import own_data, record_data

SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(runs, folder):
    return Page(write_report(runs, folder / "report.html").read_text(encoding="utf-8"))


def complete_run(folder: Path, *, weight: float, data: Path | None = None) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save(create_model("tiny"), folder / "model")
    (folder / "config.yaml").write_text(f"seed: 0\nloss:\n  weight: {weight}\n  name: '<i>'\n", encoding="utf-8")
    lines = [{"step": s, "samples_seen": 8 * s, "loss": 4 / s, "loss_clip": 3 / s} for s in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tasks = {"x": {"acc@1": weight}, "<u>": {"acc@1": 0.5}}
    (folder / "evaluation.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    if data is not None:
        record_data(folder, data)
    return folder


def test_the_page_is_complete_and_fetches_nothing(tmp_path):
    runs = {
        "<clip>": complete_run(tmp_path / "one", weight=0.0),
        "power": complete_run(tmp_path / "two", weight=0.25),
    }
    output = write_report(runs, tmp_path / "deep" / "report.html")
    html = output.read_text(encoding="utf-8")
    page = Page(html)
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 7  # the curves and six examples
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).format == "PNG"
    first, *groundings = [image["alt"] for image in page.all("img")]
    assert "CLIP loss" in first
    for text in groundings:
        assert re.search(r"<clip>: .+ \(\d+ regions, \d+\.\d\d\).*; power: .+ \(\d+ regions, ", text)
    assert "The images are generated test scenes. <clip> does not say which data it was trained on." in page.text
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert {link["href"][1:] for link in page.all("a")} == {section["id"] for section in page.all("section")}
    assert not {"script", "link", "iframe", "clip", "u", "i"} & {tag for tag, _ in page.elements}
    assert "url(" not in html
    for said in ("<clip>", "<u>", "One run and one seed each", "loss.weight", "Different (1)", "mean of 2"):
        assert said in page.text
    assert len(page.all("strong")) == 2  # x and the mean; the other task is level
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_instruments_are_shown_of_the_runs_that_have_them(tmp_path):
    old, new = (complete_run(tmp_path / name, weight=0.5) for name in ("old", "new"))
    before = report({"old": old}, tmp_path)
    assert "Do subsets choose?" not in before.text
    assert before.all("h3") == []
    measures = {"matched_above_zero_share": 0.9, "unmatched_above_zero_share": 0.2, "hub_share_t2i": 0.4}
    lines = [{"step": s, "loss": 1.0, **measures, "powerset_weight": 0.2} for s in range(1, 6)]
    (new / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = report({"old": old, "new": new}, tmp_path)
    texts = [image["alt"] for image in page.all("img")][1:4]
    assert texts == [
        f"Curves of {title} over the training steps of old, new"
        for title in ("similarities above zero", "five commonest negatives", "lambda")
    ]
    assert "similarities above zero: Share of region-phrase similarities" in page.text
    assert "score gap" not in page.text
    assert len(page.all("img")) == len(before.all("img")) + 3


def test_phrases_are_grounded_in_the_run_s_own_data(tmp_path):
    data = own_data(tmp_path / "data", "a first dog", f"a second {SCRIPT}", "a third")
    run = complete_run(tmp_path / "run", weight=0.5, data=data)
    page = report({"run": run}, tmp_path)
    assert "The images are from the data that the runs were trained on." in page.text
    assert len(page.all("figcaption")) == 3
    assert f"a second {SCRIPT}" in page.text
    assert "a third (" in page.all("img")[3]["alt"]


def test_nothing_that_a_run_holds_becomes_markup(tmp_path):
    run = complete_run(tmp_path / "run", weight=0.5, data=own_data(tmp_path / "data", SCRIPT))
    evaluation = {"tasks": {SCRIPT: {"acc@1": 0.5}}, "suite": SCRIPT, "absent": {SCRIPT: SCRIPT}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [
        {"step": 1, "loss": SCRIPT, "loss_clip": SCRIPT, SCRIPT: SCRIPT, "samples_seen": SCRIPT},
        {"step": 2, "loss": 1.5, "loss_clip": 1.0, "samples_seen": SCRIPT},
        {"step": SCRIPT},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text(json.dumps({SCRIPT: {SCRIPT: SCRIPT, "odd": '"><b>&'}}))
    page = report({f"run\x1b\ud800{SCRIPT}": run}, tmp_path)
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert page.text.count(SCRIPT) >= 6
    assert "2 steps" in page.text
    assert "loss 1.500" in page.text
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_what_a_run_lacks_is_said(tmp_path):
    broken, empty = tmp_path / "broken", tmp_path / "empty"
    empty.mkdir()
    (broken / "model").mkdir(parents=True)
    (broken / "evaluation.json").write_text('{"tasks": ', encoding="utf-8")
    (broken / "config.yaml").write_text("a: [", encoding="utf-8")
    (broken / "metrics.jsonl").write_text("", encoding="utf-8")
    page = report({"b": broken, "e": empty}, tmp_path)
    for said in ("Not evaluated", "No metrics yet", "No complete model yet", "No readable config.yaml"):
        assert f"{said}: b, e" in page.text
    assert page.all("img") == []


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(PowerclipError, match=r"run gone: there is no folder .*gone; train it first"):
        write_report({"gone": tmp_path / "gone"}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
