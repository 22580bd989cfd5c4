"""The output folder: whose it is, what its report says, and what is left when a job ends badly."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.phrases.tree import PhraseTree
from powerclip.prepare import annotate, output, prepare
from tests.support.sources import FULL, WHOLE, picture
from tests.support.tars import write_tar


@pytest.fixture
def photos(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(6):
        (place / f"{i}.jpg").write_bytes(picture(i))
        (place / f"{i}.txt").write_text(f"a dog with {i} spots")
    return place


def prepared(source, output, *, parser="none", **options):
    text = io.StringIO()
    report = prepare(source, output, parser=parser, console=Console(file=text, width=200), **options)
    return report, text.getvalue()


def test_shards_of_another_source_or_of_other_settings_are_not_touched(photos, tmp_path):
    prepared(photos, tmp_path / "out", samples_per_shard=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(
        PowerclipError, match=r"holds shards made otherwise \(samples_per_shard 2, now 3\); name an empty"
    ):
        prepared(photos, tmp_path / "out", samples_per_shard=3)
    with pytest.raises(PowerclipError, match=r"\(replace_annotations False, now True\)"):
        prepared(photos, tmp_path / "out", samples_per_shard=2, replace_annotations=True)
    (photos / "0.txt").write_text("changed")
    with pytest.raises(PowerclipError, match="holds shards of another source, or of a changed one"):
        prepared(photos, tmp_path / "out", samples_per_shard=2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_an_output_within_the_source_is_refused_before_anything_is_written(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    for source in (photos, tmp_path / "link"):
        for inside in (photos, photos / "out", tmp_path / "link" / "a" / "b"):
            with pytest.raises(PowerclipError, match="output .* lies in the source .*; name a folder outside of it"):
                prepared(source, inside)
    assert len(list(photos.rglob("*"))) == 12
    (photos / "t.csv").write_text("path,caption\n0.jpg,a dog\n")
    assert prepared(photos / "t.csv", photos / "out")[0]["samples"] == 1  # a table's folder is no source


def test_a_folder_or_file_of_something_else_is_not_touched(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(PowerclipError, match="is not empty and was not made by this command"):
        prepared(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(PowerclipError, match="thesis.txt is a file; name a folder"):
        prepared(photos, tmp_path / "out" / "thesis.txt")


def test_what_a_killed_job_left_of_its_own_is_cleared(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for name in (
        ".lock",
        ".source.json.tmp",
        ".report.json.tmp",
        ".shard-000000.json.tmp",
        ".shard-000000.tar.x-1.tmp",
    ):
        (out / name).write_text("half")
    prepared(photos, out, samples_per_shard=2)
    hidden = [f".shard-00000{i}.json" for i in range(3)]
    shown = [f"shard-00000{i}.tar" for i in range(3)]
    assert sorted(path.name for path in out.iterdir()) == [".lock", *hidden, ".source.json", "report.json", *shown]
    # Another node's worker may leave something while the job goes on.
    monkeypatch.setattr(
        annotate, "write_shard", lambda *_, **__: (tmp_path / "late" / ".shard-000000.tar.y-2.tmp").write_text("half")
    )
    prepared(photos, tmp_path / "late")
    assert not list((tmp_path / "late").glob("*.tmp"))


def test_a_plan_that_cannot_be_read_says_so(photos, tmp_path):
    prepared(photos, tmp_path / "out")
    for content in ("", "{", "[1]"):
        (tmp_path / "out" / ".source.json").write_text(content)
        with pytest.raises(
            PowerclipError, match=r"\.source\.json, which tells .* cannot be read .*; name an empty folder"
        ):
            prepared(photos, tmp_path / "out")


def test_notes_are_synced_before_they_have_their_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(output.os, "fsync", lambda file: synced.append([path.name for path in tmp_path.iterdir()]))
    output.write_json(tmp_path / "report.json", {"half": "\ud800"})
    assert synced == [[".report.json.tmp"]]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_job_that_stops_for_bad_samples_leaves_its_report(photos, tmp_path):
    for i in (0, 1, 2):
        (photos / f"{i}.jpg").write_bytes(b"junk")
    with pytest.raises(RunFailedError, match="3 of 6 samples cannot be used: 3 corrupt image"):
        prepared(photos, tmp_path / "out", samples_per_shard=2)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["samples"], report["skipped"], report["unfinished_shards"]) == (3, {"corrupt image": 3}, 0)
    report, _ = prepared(photos, tmp_path / "out", samples_per_shard=2, max_bad_share=0.5)
    assert report["samples"] == 3


def test_a_report_in_the_middle_says_what_is_not_done(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("powerclip.prepare.job.SURE", 1)
    (photos / "2.jpg").write_bytes(b"junk")
    with pytest.raises(RunFailedError, match="1 of 4 samples"):
        prepared(photos, tmp_path / "out", samples_per_shard=2)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["unfinished_shards"] == 1


@pytest.fixture
def annotated(tmp_path):
    """A tar of three samples: with phrases and regions of two makers, and without."""
    source = tmp_path / "in.tar"
    tree = {"leaves": [[0, 1], [2, 5]], "phrases": [{"label": "NP", "leaves": [0, 1]}], "parser": "hand"}
    regions = {**WHOLE, "masks": [FULL], "proposer": "sam:x"}
    files = {"jpg": picture(), "txt": b"a dog"}
    more = {"phrases.json": json.dumps(tree).encode(), "regions.json": json.dumps(regions).encode()}
    other = {"phrases.json": json.dumps({**tree, "parser": "eye"}).encode()}
    samples = {"a": {**files, **more}, "b": {**files, **other}, "c": files}
    write_tar(source, [(f"{key}.{e}", data) for key, all_ in samples.items() for e, data in all_.items()])
    return source


def test_annotations_that_come_along_stay_and_are_told_apart(annotated, tmp_path):
    report, text = prepared(annotated, tmp_path / "out", parser="spacy", regions="superpixels")
    spacy = annotate.parser_of("spacy").name
    assert report["parser"] == {"hand": 1, "eye": 1, spacy: 1}
    assert report["proposer"] == {"superpixels:felzenszwalb-100-300-1000": 2, "sam:x": 1}
    assert "; kept as they came: phrases of hand (1), regions of sam:x (1), phrases of eye (1)" in text
    assert [sample.tree.parser for sample in read_shards(tmp_path / "out")] == ["hand", "eye", spacy]


def test_annotations_that_come_along_are_made_anew_when_asked(annotated, tmp_path):
    report, text = prepared(annotated, tmp_path / "out", parser="spacy", replace_annotations=True)
    assert report["parser"] == {annotate.parser_of("spacy").name: 3}
    assert report["proposer"] == {"none": 3}
    assert "kept" not in text
    write_tar(tmp_path / "bad.tar", [("k.jpg", picture()), ("k.txt", b"a dog"), ("k.phrases.json", b"{")])
    report, _ = prepared(tmp_path / "bad.tar", tmp_path / "other", replace_annotations=True)
    assert report["parser"] == {"none": 1}  # what is replaced need not be sound
    report, _ = prepared("scenes:test", tmp_path / "scenes", count=2, replace_annotations=True)
    assert report["parser"] == report["proposer"] == {"none": 2}


def test_published_shards_keep_their_caption_when_their_parse_is_replaced(tmp_path):
    njson = json.dumps({"lens": [2], "cat": [1, 2]}).encode()
    write_tar(tmp_path / "in.tar", [("k.jpg", picture()), ("k.txt", b"a dog"), ("k.njson", njson)])
    assert prepared(tmp_path / "in.tar", tmp_path / "kept")[0]["parser"] == {"njson": 1}
    (sample,) = read_shards(tmp_path / "kept")
    assert (sample.tree.leaves, [(p.first, p.last) for p in sample.tree.phrases]) == (((0, 1), (2, 5)), [(0, 1)])
    assert prepared(tmp_path / "in.tar", tmp_path / "anew", replace_annotations=True)[0]["parser"] == {"none": 1}
    (sample,) = read_shards(tmp_path / "anew")
    assert sample.caption == "a dog"


def test_another_version_of_the_parser_is_noticed(photos, tmp_path, monkeypatch):
    def parse(captions):
        return (PhraseTree(leaves=((0, 1),), phrases=(), parser="spacy:x-1") for _ in captions)

    for version, expected in (("1", None), ("1", None), ("2", "parser spacy:x-1, now spacy:x-2")):
        parser = SimpleNamespace(name=f"spacy:x-{version}", parse=parse)
        monkeypatch.setattr("powerclip.prepare.job.parser_of", lambda name, parser=parser: parser)
        monkeypatch.setattr(annotate, "parser_of", lambda name, parser=parser: parser)
        if expected is None:
            assert prepared(photos, tmp_path / "out", parser="spacy")[0]["parser"] == {"spacy:x-1": 6}
            continue
        with pytest.raises(PowerclipError, match=expected):
            prepared(photos, tmp_path / "out", parser="spacy")


def test_an_image_that_the_proposer_refuses_costs_itself(photos, tmp_path, monkeypatch):
    real = annotate.proposer_of("superpixels", device="cpu")

    def propose(image):
        if image.width == 7:
            raise ValueError("Size must contain 'height'")
        return real.propose(image)

    monkeypatch.setattr(annotate, "proposer_of", lambda *_, **__: SimpleNamespace(name="x", propose=propose))
    (photos / "3.jpg").write_bytes(picture(size=(7, 500)))
    report, _ = prepared(photos, tmp_path / "out", regions="superpixels", max_bad_share=0.5)
    assert report["samples"] == 5
    assert report["skipped"] == {"image that the regions' proposer refuses": 1}


def test_a_batch_is_bounded_by_bytes(photos, tmp_path, monkeypatch):
    batches = []
    monkeypatch.setattr(annotate, "_parse", lambda samples, parser: batches.append(len(samples)) or samples)
    monkeypatch.setattr(annotate, "BATCH", 4)
    prepared(photos, tmp_path / "many")
    assert batches == [4, 2]
    batches.clear()
    monkeypatch.setattr(annotate, "BATCH_BYTES", 2 * len(picture()))
    prepared(photos, tmp_path / "large")
    assert sum(batches) == 6
    assert max(batches) == 2
