"""The output folder: whose it is, what its report says, and what is left when a job ends badly."""

import io
import json
import re
import resource
import shutil

import pyarrow as pa
import pytest
from pyarrow import parquet

from powerclip.cli import main
from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.phrases import load_parser
from powerclip.prepare.output import reserved
from tests.support.sources import FULL, WHOLE, picture, prepared
from tests.support.tars import write_tar


@pytest.fixture
def photos(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(6):
        (place / f"{i}.jpg").write_bytes(picture(i))
        (place / f"{i}.txt").write_text(f"a dog with {i} spots")
    return place


def test_shards_of_another_source_or_of_other_settings_are_not_touched(photos, tmp_path):
    prepared(photos, tmp_path / "out", samples_per_shard=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(
        PowerclipError, match=r"shards made with other settings \(samples_per_shard was 2, now 3\); name an empty"
    ):
        prepared(photos, tmp_path / "out", samples_per_shard=3)
    with pytest.raises(PowerclipError, match=r"\(caption_lines was None, now True\)"):
        prepared(photos, tmp_path / "out", samples_per_shard=2, caption_lines=True)
    (photos / "0.txt").write_text("changed")
    with pytest.raises(PowerclipError, match="holds shards of another source, or the source has changed"):
        prepared(photos, tmp_path / "out", samples_per_shard=2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_equal_table_in_another_folder_is_another_source(suffix, tmp_path):
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(picture(i))
    if suffix == "csv":
        (tmp_path / "a" / "t.csv").write_text("path,caption\nx.jpg,a dog\n")
    else:
        parquet.write_table(pa.table({"path": ["x.jpg"], "caption": ["a dog"]}), tmp_path / "a" / "t.parquet")
    shutil.copy2(tmp_path / "a" / f"t.{suffix}", tmp_path / "b")
    prepared(tmp_path / "a" / f"t.{suffix}", tmp_path / "out")
    with pytest.raises(PowerclipError, match="of another source, or the source has changed or moved; name an empty"):
        prepared(tmp_path / "b" / f"t.{suffix}", tmp_path / "out")


def test_an_output_within_the_source_is_refused_before_anything_is_written(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    for source in (photos, tmp_path / "link"):
        for inside in (photos, photos / "out", tmp_path / "link" / "a" / "b"):
            with pytest.raises(PowerclipError, match="output .* is inside the source .*; name a folder outside of it"):
                prepared(source, inside)
    assert len(list(photos.rglob("*"))) == 12
    (photos / "t.csv").write_text("path,caption\n0.jpg,a dog\n")
    assert prepared(photos / "t.csv", photos / "out")["samples"] == 1  # a table's folder is not a source


def test_a_folder_or_file_of_something_else_is_not_touched(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(PowerclipError, match="is not empty and was not made by this command"):
        prepared(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(PowerclipError, match="thesis.txt is a file; name a folder"):
        prepared(photos, tmp_path / "out" / "thesis.txt")


def test_what_a_killed_job_left_is_removed(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    temporary = [
        ".source.json.x-1.tmp",
        ".report.json.x-1.tmp",
        ".shard-000000.json.x-1.tmp",
        ".shard-000000.tar.x-1.tmp",
    ]
    for name in (".lock", *temporary):
        (out / name).write_text("half")
    prepared(photos, out, samples_per_shard=2)
    hidden = [f".shard-00000{i}.json" for i in range(3)]
    shown = [f"shard-00000{i}.tar" for i in range(3)]
    assert sorted(path.name for path in out.iterdir()) == [".lock", *hidden, ".source.json", "report.json", *shown]


def test_a_full_disk_is_one_line_and_the_job_goes_on(photos, tmp_path, capsys):
    arguments = ["prepare", str(photos), str(tmp_path / "out"), "--parser", "none"]
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        assert main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(r"File too large: '.*/out/shard-000000.tar'\n$", capsys.readouterr().err)
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.tar*")] == ["shard-000000.tar"]


def test_what_another_node_leaves_while_the_job_runs_is_removed(tmp_path):
    with reserved(tmp_path, {"source": "x"}):
        (tmp_path / ".shard-000000.tar.y-2.tmp").write_text("half")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".source.json"]


def test_a_plan_that_cannot_be_read_says_so(photos, tmp_path):
    prepared(photos, tmp_path / "out")
    for content in ("", "{", "[1]"):
        (tmp_path / "out" / ".source.json").write_text(content)
        with pytest.raises(
            PowerclipError, match=r"\.source\.json, which says .* cannot be read .*; name an empty folder"
        ):
            prepared(photos, tmp_path / "out")


def test_a_job_that_stops_for_bad_samples_leaves_its_report(photos, tmp_path):
    for i in (0, 1, 2):
        (photos / f"{i}.jpg").write_bytes(b"junk")
    with pytest.raises(RunFailedError, match="3 of 6 samples cannot be used: 3 image format not read"):
        prepared(photos, tmp_path / "out", samples_per_shard=2, max_bad_share=0.1)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["samples"], report["skipped"], report["unfinished_shards"]) == (3, {"image format not read": 3}, 0)
    report = prepared(photos, tmp_path / "out", samples_per_shard=2, max_bad_share=0.5)
    assert report["samples"] == 3


def test_a_report_in_the_middle_says_what_is_not_done(tmp_path):
    """The first hundred samples are enough to see that most are bad."""
    (tmp_path / "photos").mkdir()
    for i in range(150):
        (tmp_path / "photos" / f"{i:03d}.jpg").write_bytes(b"junk" if i < 100 else picture())
        (tmp_path / "photos" / f"{i:03d}.txt").write_text("a dog")
    with pytest.raises(RunFailedError, match="100 of 100 samples so far cannot be used"):
        prepared(tmp_path / "photos", tmp_path / "out", samples_per_shard=100, max_bad_share=0.9)
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


def test_annotations_of_the_source_stay_and_are_counted_by_maker(annotated, tmp_path):
    text = io.StringIO()
    report = prepared(annotated, tmp_path / "out", parser="spacy", regions="superpixels", text=text)
    spacy = load_parser("spacy").name
    assert report["parser"] == {"hand": 1, "eye": 1, spacy: 1}
    assert report["proposer"] == {"superpixels:felzenszwalb-100-300-1000": 2, "sam:x": 1}
    assert "; kept from the source: phrases of hand (1), regions of sam:x (1), phrases of eye (1)" in text.getvalue()
    assert [sample.tree.parser for sample in read_shards(tmp_path / "out")] == ["hand", "eye", spacy]


def test_annotations_of_the_source_are_replaced_when_asked(annotated, tmp_path):
    text = io.StringIO()
    report = prepared(annotated, tmp_path / "out", parser="spacy", replace_annotations=True, text=text)
    assert report["parser"] == {load_parser("spacy").name: 3}
    assert report["proposer"] == {"none": 3}
    assert "kept" not in text.getvalue()
    write_tar(tmp_path / "bad.tar", [("k.jpg", picture()), ("k.txt", b"a dog"), ("k.phrases.json", b"{")])
    report = prepared(tmp_path / "bad.tar", tmp_path / "other", replace_annotations=True)
    assert report["parser"] == {"none": 1}  # what is replaced need not be valid
    report = prepared("scenes:test", tmp_path / "scenes", count=2, replace_annotations=True)
    assert report["parser"] == report["proposer"] == {"none": 2}


def test_regions_of_the_source_are_replaced_alone_when_asked(annotated, tmp_path):
    report = prepared(annotated, tmp_path / "out", parser="spacy", regions="superpixels", replace_regions=True)
    assert report["parser"] == {"hand": 1, "eye": 1, load_parser("spacy").name: 1}
    assert report["proposer"] == {"superpixels:felzenszwalb-100-300-1000": 3}
    report = prepared("scenes:test", tmp_path / "scenes", count=2, regions="superpixels", replace_regions=True)
    assert report["parser"] == {"gold": 2}
    assert report["proposer"] == {"superpixels:felzenszwalb-100-300-1000": 2}


def test_published_shards_keep_their_caption_when_their_parse_is_replaced(tmp_path):
    njson = json.dumps({"lens": [2], "cat": [1, 2]}).encode()
    write_tar(tmp_path / "in.tar", [("k.jpg", picture()), ("k.txt", b"a dog"), ("k.njson", njson)])
    assert prepared(tmp_path / "in.tar", tmp_path / "kept")["parser"] == {"njson": 1}
    (sample,) = read_shards(tmp_path / "kept")
    assert (sample.tree.leaves, [(p.first, p.last) for p in sample.tree.phrases]) == (((0, 1), (2, 5)), [(0, 1)])
    assert prepared(tmp_path / "in.tar", tmp_path / "replaced", replace_annotations=True)["parser"] == {"none": 1}
    (sample,) = read_shards(tmp_path / "replaced")
    assert sample.caption == "a dog"


def test_another_version_of_the_parser_is_noticed(photos, tmp_path):
    """The plan names the parser with its version."""
    prepared(photos, tmp_path / "out", parser="spacy")
    plan = json.loads((tmp_path / "out" / ".source.json").read_text())
    assert plan["parser"] == load_parser("spacy").name
    with (
        pytest.raises(PowerclipError, match="parser was spacy:.*, now spacy:x-2"),
        reserved(tmp_path / "out", {**plan, "parser": "spacy:x-2"}),
    ):
        raise AssertionError("reserved for another plan")
