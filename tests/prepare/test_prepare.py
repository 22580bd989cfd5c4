import json
from pathlib import Path

import pytest
from PIL import Image

from powerclip.config import PrepareConfig
from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.prepare import prepare
from powerclip.prepare.output import reserved


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i in range(12):
        place = folder / ("sub" if i % 2 else ".") / f"p{i:02d}"
        Image.new("RGB", (10, 8), (i * 20, 0, 0)).save(place.with_suffix(".jpg" if i % 3 else ".bmp"))
        place.with_suffix(".txt").write_text(f"a dog with {i} spots rides a horse.")
    return folder


def test_a_folder_becomes_shards_with_phrases(photos, tmp_path):
    report = prepare(photos, tmp_path / "out", PrepareConfig(samples_per_shard=5))
    samples = list(read_shards(tmp_path / "out"))
    assert report["samples"] == len(samples) == 12
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3
    assert {sample.image_extension for sample in samples} == {"jpg", "png"}
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    for sample in samples:
        texts = {
            sample.caption[sample.tree.leaves[p.first][0] : sample.tree.leaves[p.last][1]] for p in sample.tree.phrases
        }
        assert {"a horse", "rides a horse"} <= texts
    assert report["phrases_per_caption"] == sum(len(s.tree.phrases) for s in samples) / 12


def test_bad_pairs_are_skipped_with_their_reason(photos, tmp_path):
    (photos / "p02.jpg").write_bytes(b"junk")
    (photos / "p04.txt").write_text("  ")
    (photos / "p06.txt").unlink()
    report = prepare(photos, tmp_path / "out", PrepareConfig(max_bad_share=0.5))
    assert report["skipped"] == {"image format not read": 1, "empty caption": 1, "no caption": 1}
    assert report["examples"]["image format not read"] == ["p02.jpg"]
    with pytest.raises(RunFailedError, match=r"3 of 12 samples cannot be used: .*e.g. p02.jpg.*--max-bad-share"):
        prepare(photos, tmp_path / "other", PrepareConfig(max_bad_share=0.1))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_table_becomes_shards(suffix, photos, tmp_path):
    rows = [{"file": f"sub/p{i:02d}.jpg", "Caption": f'the "quoted", dog {i}\nrides'} for i in (1, 5, 7)]
    table = photos / f"table.{suffix}"
    if suffix == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        separator = "," if suffix == "csv" else "\t"
        cell = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
        lines = [separator.join(rows[0]), *(separator.join(cell(v) for v in row.values()) for row in rows)]
        table.write_text("\n".join(lines))
    assert prepare(table, tmp_path / "out", PrepareConfig(parser="none"))["samples"] == 3
    samples = list(read_shards(tmp_path / "out"))
    assert [sample.caption for sample in samples] == [" ".join(row["Caption"].split()) for row in rows]
    assert all(sample.tree is None for sample in samples)


def test_a_job_cut_short_continues_where_it_was(photos, tmp_path):
    config = PrepareConfig(samples_per_shard=4, parser="none")
    complete = prepare(photos, tmp_path / "complete", config)
    obstacle = tmp_path / "cut" / "shard-000001.tar"
    with reserved(tmp_path / "cut", json.loads((tmp_path / "complete" / ".source.json").read_text())):
        obstacle.mkdir()
    with pytest.raises(IsADirectoryError):
        prepare(photos, tmp_path / "cut", config)
    obstacle.rmdir()
    first = (tmp_path / "cut" / "shard-000000.tar").stat().st_mtime_ns
    assert prepare(photos, tmp_path / "cut", config) == complete
    assert (tmp_path / "cut" / "shard-000000.tar").stat().st_mtime_ns == first
    for made in (tmp_path / "complete").glob("*.tar"):
        assert (tmp_path / "cut" / made.name).read_bytes() == made.read_bytes()


def test_scenes_keep_their_gold_phrases(tmp_path):
    prepare("scenes:test", tmp_path / "out", PrepareConfig(count=3))
    assert [sample.tree.parser for sample in read_shards(tmp_path / "out")] == ["gold"] * 3


def test_what_cannot_be_prepared_is_one_clear_line(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.xlsx").write_text("")
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "t.csv").write_text("id,words\n1,hello\n")
    for source, options, message in [
        (tmp_path / "nowhere", {}, "no source at"),
        (tmp_path / "empty", {}, "no image in .*looked for .apng, .*.bmp"),
        (tmp_path / "list.xlsx", {}, "cannot be read as a source"),
        (tmp_path / "bad.jsonl", {}, "cannot read the table"),
        (tmp_path / "t.csv", {}, r"no column named path, image.*--image-column \(columns: id, words\)"),
        (
            tmp_path / "t.csv",
            {"image_column": "word"},
            r"no column 'word'; did you mean words\?",
        ),
        ("scenes:night", {}, "unknown scenes 'night'"),
        (photos, {"parser": "yacc"}, "unknown parser 'yacc'"),
        (photos, {"max_bad_share": 10}, "max_bad_share is 10; it must be between 0 and 1"),
        (photos, {"workers": 0}, "workers is 0; it must be at least 1"),
        ("scenes:train", {"count": 0}, "count is 0; it must be at least 1"),
    ]:
        with pytest.raises((PowerclipError, ValueError), match=message) as caught:
            prepare(source, tmp_path / "out", PrepareConfig(**options))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_rerun_takes_in_what_could_not_be_read_before_and_makes_nothing_else_again(photos, tmp_path, capsys):
    names = sorted(str(path) for path in photos.rglob("*.*") if path.suffix != ".txt")
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"path": name, "caption": "a dog"}) + "\n" for name in names))
    config = PrepareConfig(parser="none", samples_per_shard=4, max_bad_share=1.0)
    expected = prepare(table, tmp_path / "whole", config)
    away, junk = Path(names[5]), Path(names[9])
    content = away.read_bytes(), junk.read_bytes()
    away.unlink()
    junk.write_bytes(b"junk")
    assert prepare(table, tmp_path / "out", config)["skipped"] == {"image file missing": 1, "image format not read": 1}
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert prepare(table, tmp_path / "out", config)["skipped"] == {"image file missing": 1, "image format not read": 1}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == made
    away.write_bytes(content[0])
    junk.write_bytes(content[1])  # another content was read, so it is another source: that shard stays
    assert prepare(table, tmp_path / "out", config)["skipped"] == {"image format not read": 1}
    again = [path.name for path, at in made.items() if path.stat().st_mtime_ns != at]
    assert again == ["shard-000001.tar"]
    whole, found = ((tmp_path / name / again[0]).read_bytes() for name in ("whole", "out"))
    assert found == whole
    assert expected["samples"] == 12
