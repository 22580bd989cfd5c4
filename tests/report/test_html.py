"""The page fetches nothing, escapes everything, and survives broken run folders and odd names."""

import base64
import hashlib
import io
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from powerclip import create_model
from powerclip.config import EvaluateConfig
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_model
from powerclip.model import save
from powerclip.report import write_report
from powerclip.report.html import watch
from powerclip.scenes import generate
from tests.support.runs import own_data, record_data

SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """A page's elements with their attributes, its text, and the data for its script."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.scripts, self.open = [], [], [], ""
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data):
        (self.scripts if self.open == "script" and data.strip() else self.words).append(data)

    def handle_endtag(self, tag):
        self.open = ""

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def captions(self):
        return [a["aria-label"].partition(", as ")[0] for a in self.all("svg")]


def report(runs, folder):
    return Page(write_report(runs, folder / "report.html").read_text(encoding="utf-8"))


def complete_run(folder: Path, *, weight: float, data: Path | None = None) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save(create_model("tiny"), folder / "model")
    (folder / "config.yaml").write_text(
        f"seed: 0\nobjective:\n  powerset_weight: {weight}\n  name: '<i>'\n", encoding="utf-8"
    )
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
    said = []
    output = write_report(runs, tmp_path / "deep" / "report.html", progress=said.append)
    html = output.read_text(encoding="utf-8")
    page = Page(html)
    assert len(html) < 2_000_000
    assert said[0] == "grounding, image 1 of 6"
    for source in page.data["images"]:
        data = base64.b64decode(source.removeprefix("data:image/webp;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).format == "WEBP"
    shown = [int(a["data-image"]) for tag, a in page.elements if "data-image" in a]
    assert set(shown) == set(range(len(page.data["images"])))
    assert [panel["title"] for panel in page.data["curves"][0]] == ["CLIP loss"]
    line = page.data["curves"][0][0]["lines"][1]
    assert (line["run"], line["dashed"], line["points"][3]) == (1, False, [4, 0.75, 0.75, 0.75])
    assert len(page.captions()) == 12
    assert [len(of_sample) for of_sample in page.data["masks"]] == [2] * 6
    assert all(len(mask) == 64 for of_sample in page.data["masks"] for of_run in of_sample for mask in of_run)
    assert "The images are generated test scenes. The regions are tiles of the patch grid. <clip> does not" in page.text
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert {link["href"][1:] for link in page.all("a")} == {section["id"] for section in page.all("section")}
    assert not {"link", "iframe", "clip", "u"} & {tag for tag, _ in page.elements}
    policy = page.all("meta")[1]["content"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(page.scripts) == 2
    assert "url(" not in html
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    for part in (
        "<clip>",
        "<u>",
        "One run and one seed each",
        "objective.powerset_weight",
        "Different (1)",
        "mean of 2",
    ):
        assert part in page.text
    assert "power is ahead in 1 of 1 headline results, in 0 of them beyond the sampling error." in page.text
    assert "Among 200 images with one caption each, generated scenes" in page.text
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_curves_are_shown_of_the_runs_that_have_them(tmp_path):
    old, new = (complete_run(tmp_path / name, weight=0.5) for name in ("old", "new"))
    measures = {"matched_above_zero_share": 0.9, "unmatched_above_zero_share": 0.2, "hub_share_t2i": 0.4}
    lines = [{"step": s, "loss": 1.0, **measures, "powerset_weight": 0.2} for s in range(1, 6)]
    lines.append({"step": 5, "eval/mean": 0.5, "eval/a/b/acc@1": 0.25, "eval/a/b/acc@5": 1.0})
    (new / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = report({"old": old, "new": new}, tmp_path)
    assert [[panel["title"] for panel in group] for group in page.data["curves"]] == [
        ["CLIP loss"],
        ["mean", "a b acc@1"],
        ["similarities above zero"],
        ["five commonest negatives"],
        ["lambda"],
    ]
    above = page.data["curves"][2][0]
    assert [(line["run"], line["dashed"], line["points"][0]) for line in above["lines"]] == [
        (1, False, [1, 0.9, 0.9, 0.9]),
        (1, True, [1, 0.2, 0.2, 0.2]),
    ]
    assert "similarities above zero: Share of region-phrase similarities" in page.text
    assert "score gap" not in page.text


def test_examples_are_of_the_run_s_own_data(tmp_path):
    data = own_data(tmp_path / "data", "a first dog", f"a second {SCRIPT}", "a third")
    run = complete_run(tmp_path / "run", weight=0.5, data=data)
    page = report({"run": run}, tmp_path)
    assert "The images are from the data that the runs were trained on." in page.text
    assert page.captions() == ["a first dog", f"a second {SCRIPT}", "a third"]
    for tag in ("h3", "q", "span"):  # captions, answers, phrases and words: in whichever direction they are written
        assert {"dir": "auto"} in page.all(tag)
    assert (
        f"Among 3 images with one caption each, from the start of the data that the models were trained on, {data}"
        in page.text
    )
    assert f"\u201c{SCRIPT}" not in page.text
    (run / "evaluation.json").unlink()
    evaluate_model(
        str(run), EvaluateConfig(suite=("pairs",), data=own_data(tmp_path / "held-out", "x", "y"), device="cpu")
    )
    page = report({"run": run}, tmp_path)
    assert "Among 2 images with one caption each, from retrieval, on which the results above were measured" in page.text


def test_a_run_trained_on_stored_regions_is_shown_with_them(tmp_path):
    run = complete_run(tmp_path / "run", weight=0.5)
    (run / "config.yaml").write_text("objective: {region_source: stored}\n")
    write_shards(generate("train", count=2, seed=0), tmp_path / "data")
    record_data(run, tmp_path / "data")
    page = report({"run": run}, tmp_path)
    objects = [len(sample.regions.rles) for sample in generate("train", count=2, seed=0)]
    assert [len(of_run) for (of_run,) in page.data["masks"]] == objects
    assert "Where a sample has regions of its own, those are the regions of run; others are tiles" in page.text


def test_nothing_that_a_run_holds_becomes_markup(tmp_path):
    run = complete_run(tmp_path / "run", weight=0.5, data=own_data(tmp_path / "data", SCRIPT))
    evaluation = {"tasks": {SCRIPT: {"acc@1": 0.5}}, "suite": SCRIPT, "absent": {SCRIPT: SCRIPT}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [
        {"step": 1, "loss": SCRIPT, "loss_clip": SCRIPT, SCRIPT: SCRIPT, "samples_seen": SCRIPT},
        {"step": 2, "loss": 1.5, "loss_clip": 1.0, "samples_seen": SCRIPT, f"eval/{SCRIPT}/acc@1": 1.0},
        {"step": SCRIPT},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text(json.dumps({SCRIPT: {SCRIPT: SCRIPT, "odd": '"><u>&'}, "model": {"name": SCRIPT}}))
    page = report({f"run\x1b\ud800{SCRIPT}": run}, tmp_path)
    assert len(page.all("script")) == len(page.scripts) == 2
    assert "u" not in {tag for tag, _ in page.elements}
    assert page.text.count(SCRIPT) >= 6
    assert page.data["curves"][1][0]["title"] == f"{SCRIPT.replace('/', ' ')} acc@1"
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_what_a_run_lacks_is_said(tmp_path):
    broken, empty = tmp_path / "broken", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PowerclipError, match=r"run e: .*empty is no run: it holds no config\.yaml"):
        write_report({"e": empty}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    (empty / "config.yaml").write_text("[", encoding="utf-8")
    with pytest.raises(PowerclipError, match=r"no run: .* or model; name those in it: .*/empty$"):
        write_report({"all": tmp_path}, tmp_path / "report.html")
    (broken / "model").mkdir(parents=True)
    (broken / "evaluation.json").write_text('{"tasks": ', encoding="utf-8")
    (broken / "config.yaml").write_text("a: [", encoding="utf-8")
    (broken / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(PowerclipError, match="output .* is a folder; name a file"):
        write_report({"e": empty}, tmp_path)
    said = []
    output = write_report({"b": broken, "e": empty}, tmp_path / "report.html", progress=said.append)
    page = Page(output.read_text(encoding="utf-8"))
    for missing in ("No metrics yet", "No complete model yet", "No readable config.yaml"):
        assert f"{missing}: b, e" in page.text
    assert "Not evaluated: e (run" in page.text
    assert "No result can be read in evaluation.json: b (move it away and evaluate again)" in page.text
    again = "(move it away and evaluate again); going on without it"
    assert said == [f"run b: no result can be read in {broken / 'evaluation.json'} {again}"]
    assert page.data["images"] == page.data["curves"] == page.data["masks"] == []


def test_a_damaged_model_is_named_with_the_reason(tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{")
    said = []
    page = Page(write_report({"a": run}, tmp_path / "report.html", progress=said.append).read_text())
    assert said[0].startswith("run a: ")
    assert said[0].endswith("; going on without its model")
    assert "The model of a cannot be read, so it is not shown: " in page.text
    assert "No complete model yet" not in page.text


def test_only_a_report_is_written_over(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    other = run / "evaluation.json"
    other.write_text(json.dumps({"tasks": {"x": {"acc@1": 0.5}}}))
    before = other.read_bytes()
    with pytest.raises(PowerclipError, match=r"output .*evaluation\.json is not a report but another file"):
        write_report({"a": run}, other)
    assert other.read_bytes() == before
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>mine</title>")
    with pytest.raises(PowerclipError, match="not a report"):
        write_report({"a": run}, page)
    page.write_bytes(b"")
    assert page.read_bytes() != write_report({"a": run}, page).read_bytes()
    page.write_bytes(page.read_bytes() + b" ")
    assert not write_report({"a": run}, page).read_bytes().endswith(b" ")


def test_how_many_captions_were_cut_is_a_note(tmp_path):
    run = complete_run(tmp_path / "run", weight=0.5)
    shutil.rmtree(run / "model")
    (run / "evaluation.json").write_text(json.dumps({"tasks": {"x": {"i2t_R@1": 0.5, "captions_cut": 0.125}}}))
    page = report({"run": run}, tmp_path)
    assert "run, x: 12.5% of the captions are longer than the context." in page.text
    assert "captions_cut" not in page.text


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(PowerclipError, match=r"run gone: there is no folder .*gone; train it first"):
        write_report({"gone": tmp_path / "gone"}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_watched_page_is_written_again_when_a_run_has_something_new(tmp_path, monkeypatch):
    run = complete_run(tmp_path / "run", weight=0.5)
    shutil.rmtree(run / "model")
    output, seen = tmp_path / "report.html", []

    def next_round(seconds):
        seen.append((seconds, output.stat().st_mtime_ns))
        if len(seen) == 2:  # nothing was new in the second round
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 6, "eval/mean": 0.25}) + "\n")
            os.utime(run / "metrics.jsonl", ns=(1, 1))
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("powerclip.report.html.wait", next_round)
    said = []
    with pytest.raises(KeyboardInterrupt):
        watch({"run": run}, output, every_s=7.0, progress=said.append)
    assert said == [f"{output} is written; waiting for changes, Ctrl-C ends this"]
    times = [written for _, written in seen]
    assert times[0] == times[1] < times[2]
    assert [seconds for seconds, _ in seen] == [7.0] * 3
    page = Page(output.read_text())
    assert page.all("body") == [{"data-reload-s": "7.0"}]
    assert [panel["title"] for panel in page.data["curves"][1]] == ["mean"]
    assert Page(write_report({"run": run}, output).read_text()).all("body") == [{}]
