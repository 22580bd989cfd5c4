"""Folders as people have them: every file is used, or counted with a reason."""

import io
import os
import re
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError
from powerclip.prepare.tables import table_files
from tests.support.images import one_colour
from tests.support.sources import captions, picture, prepared
from tests.support.tars import write_tar


def put(folder, *stems, suffix=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}{suffix}").write_bytes(picture())
        (folder / f"{stem}.txt").write_text(f"a dog of {folder.name}")


def test_linked_folders_are_read_once(tmp_path):
    put(tmp_path / "photos" / "own", "a")
    put(tmp_path / "disk", "b", "c")
    put(tmp_path / "disk" / "deep", "d")
    (tmp_path / "photos" / "disk").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "disk again").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "inside").symlink_to(tmp_path / "photos" / "own")
    (tmp_path / "photos" / "parent").symlink_to(tmp_path)
    report = prepared(tmp_path / "photos", tmp_path / "out")
    assert report["samples"] == 4
    assert sorted(captions(tmp_path / "out")) == ["a dog of deep", "a dog of disk", "a dog of disk", "a dog of own"]
    assert report["ignored"] == {"link to a folder that is read anyway": 4}


def test_folders_within_linked_ones_are_read_once(tmp_path):
    put(tmp_path / "photos", "a")
    put(tmp_path / "disk" / "deep", "b")
    put(tmp_path / "disk" / "deep" / "deeper", "c")
    (tmp_path / "photos" / "all").symlink_to(tmp_path / "disk" / "deep")
    (tmp_path / "photos" / "part").symlink_to(tmp_path / "disk" / "deep" / "deeper")
    (tmp_path / "disk" / "deep" / "deeper" / "up").symlink_to(tmp_path / "disk")
    report = prepared(tmp_path / "photos", tmp_path / "out")
    assert sorted(captions(tmp_path / "out")) == ["a dog of deep", "a dog of deeper", "a dog of photos"]
    assert report["ignored"] == {"link to a folder that is read anyway": 2}


def test_a_link_into_a_hidden_folder_is_read(tmp_path):
    put(tmp_path / "photos", "a")
    put(tmp_path / "photos" / ".store" / "part", "b")
    (tmp_path / "photos" / "part").symlink_to(Path(".store", "part"))
    (tmp_path / "photos" / "part again").symlink_to(Path(".store", "part"))
    report = prepared(tmp_path / "photos", tmp_path / "out")
    assert captions(tmp_path / "out") == ["a dog of photos", "a dog of part"]
    assert report["ignored"] == {"link to a folder that is read anyway": 1, "hidden": 1}


def test_other_files_do_not_decide_what_a_folder_of_pairs_is(tmp_path):
    put(tmp_path, "a")
    (tmp_path / "state.json").write_text('{"step": 3}')
    assert prepared(tmp_path, tmp_path.with_name("out"))["ignored"] == {".json": 1}
    write_tar(tmp_path / "backup.tar", [("x.txt", b"old")])
    with pytest.raises(PowerclipError, match="holds tars .backup.tar, .* and images with captions; put one of the two"):
        prepared(tmp_path, tmp_path.with_name("out"))


def test_an_image_too_large_as_png_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("powerclip.prepare.pairs.MAX_MEMBER_BYTES", 5000)
    put(tmp_path / "photos", "a", "b")
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    noise.save(tmp_path / "photos" / "b.jpg", "TIFF", compression="jpeg", quality=20)
    report = prepared(tmp_path / "photos", tmp_path / "out", max_bad_share=1.0)
    assert report["skipped"] == {"file too large as PNG": 1}


def test_folders_that_cannot_be_read_are_counted(tmp_path, monkeypatch):
    put(tmp_path / "photos", "a")
    monkeypatch.chdir(tmp_path / "photos")
    for _ in range(20):  # a path longer than the system takes, which stops root as well
        Path("x" * 250).mkdir()
        os.chdir("x" * 250)
    report = prepared(tmp_path / "photos", tmp_path / "out")
    assert (report["samples"], report["ignored"]) == (1, {"folder that cannot be read": 1})


READ = {
    "photos": {"caption_lines": True},
    "t.csv": {"image_column": "path", "caption_column": "caption", "header": False, "caption_lines": True},
    "t.jsonl": {"image_column": "path", "caption_column": "caption", "caption_lines": True},
    "t.parquet": {"image_column": "path", "caption_column": "caption", "caption_lines": True},
    "t.tar": {"caption_key": "txt", "caption_lines": True, "replace_annotations": True, "replace_regions": True},
    "scenes:train": {"count": 5, "seed": 1, "replace_annotations": True, "replace_regions": True},
}
UNUSED = {name: value for options in READ.values() for name, value in options.items()} | {"join": "url"}


@pytest.mark.parametrize("source", READ)
@pytest.mark.parametrize("name", UNUSED)
def test_an_option_that_a_source_does_not_read_is_refused(source, name, tmp_path):
    put(tmp_path / "photos", "a")
    (tmp_path / "t.csv").write_text("path,caption\nphotos/a.jpg,a dog\n")
    (tmp_path / "t.jsonl").write_text('{"path": "photos/a.jpg", "caption": "a dog"}\n')
    parquet.write_table(pa.table({"path": ["photos/a.jpg"], "caption": ["a dog"]}), tmp_path / "t.parquet")
    write_tar(tmp_path / "t.tar", [("a.jpg", picture()), ("a.txt", b"a dog")])
    option, said = {"header": "--no-header"}.get(name, f"--{name.replace('_', '-')}"), ""
    try:
        few = {"count": 5} if ":" in source else {}
        prepared(source if few else tmp_path / source, tmp_path / "out", **few | {name: UNUSED[name]})
    except PowerclipError as error:  # without a header, the columns have to be named
        said = str(error)
    refused = re.fullmatch(f"{option} has no effect on .*{source}: it is for [^:]*; leave it out", said)
    assert bool(refused) == (name not in READ[source])
    assert refused or not said or name == "header"


def test_an_option_that_a_join_does_not_read_is_refused(tmp_path):
    write_tar(tmp_path / "in" / "t.tar", [("a.jpg", picture()), ("a.txt", b"a dog")])
    (tmp_path / "t.jsonl").write_text('{"key": "a", "caption": "a cat"}\n')
    for name in sorted(UNUSED.keys() - {"join", "caption_column", "caption_lines"}):
        with pytest.raises(PowerclipError, match="has no effect on .*/in with --captions .*jsonl: it is for "):
            prepared(tmp_path / "in", tmp_path / "out", captions=str(tmp_path / "t.jsonl"), **{name: UNUSED[name]})


@pytest.mark.parametrize("suffix", [".TXT", ".Txt"])
def test_captions_in_upper_case(suffix, tmp_path):
    put(tmp_path / "photos", "a")
    (tmp_path / "photos" / "B.JPG").write_bytes(picture())
    (tmp_path / "photos" / f"B{suffix}").write_text("a cat")
    report = prepared(tmp_path / "photos", tmp_path / "out")
    assert (report["samples"], report["ignored"]) == (2, {})
    assert captions(tmp_path / "out") == ["a cat", "a dog of photos"]


def test_what_is_not_a_pair_is_counted_and_printed(tmp_path):
    put(tmp_path / "photos", "a")
    put(tmp_path / "photos" / ".hidden", "b")
    for name in ("b.psd", "c.txt", "c.json", "README", "._a.jpg"):
        (tmp_path / "photos" / name).write_text("x")
    (tmp_path / "photos" / "e.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "photos" / "e.txt").write_text("a dog")
    (tmp_path / "photos" / "f.dat").symlink_to(tmp_path / "gone.dat")
    text = io.StringIO()
    report = prepared(tmp_path / "photos", tmp_path / "out", text=text)
    assert report["skipped"] == {"image file missing": 1}
    assert report["ignored"] == {
        "hidden": 2, ".psd": 1, "caption without an image": 1, ".json": 1, "no extension": 1, "broken link": 1,
    }  # fmt: skip
    assert "1 skipped (1 image file missing); " in text.getvalue()
    assert "other files in the source: 2 hidden, " in text.getvalue()
    assert "1 .psd" in text.getvalue()


def test_captions_of_images_that_are_not_read_count_as_bad_pairs(tmp_path):
    put(tmp_path / "photos", "a")
    put(tmp_path / "photos", "b", suffix=".tga")
    put(tmp_path / "photos" / "more", "c", suffix="")
    put(tmp_path / "photos", "a", suffix=".psd")  # what the image was made from
    report = prepared(tmp_path / "photos", tmp_path / "out", max_bad_share=1.0)
    assert captions(tmp_path / "out") == ["a dog of photos"]
    assert report["skipped"] == {"image format not read: .tga": 1, "image format not read: no extension": 1}
    assert (report["examples"]["image format not read: .tga"], report["ignored"]) == (["b.tga"], {".psd": 1})
    with pytest.raises(PowerclipError, match="2 of 3 samples cannot be used: 1 image format not read: .tga"):
        prepared(tmp_path / "photos", tmp_path / "other", max_bad_share=0.5)


KINDS = {
    ".mpo": "JPEG",
    ".jif": "JPEG",
    ".pjpeg": "JPEG",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".pgm": "PPM",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".apng": "PNG",
    ".heic": "HEIF",
}


@pytest.mark.parametrize("suffix", KINDS)
def test_folders_tables_and_tars_read_the_same_formats(suffix, tmp_path):
    assert suffix in IMAGE_SUFFIXES
    image = one_colour(9, KINDS[suffix], size=(32, 32), mode="L" if suffix == ".pgm" else "RGB")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / f"a{suffix}").write_bytes(image)
    (tmp_path / "photos" / "a.txt").write_text("a dog")
    (tmp_path / "t.csv").write_text(f"path,caption\nphotos/a{suffix},a dog\n")
    write_tar(tmp_path / "t.tar", [(f"a{suffix}", image), ("a.txt", b"a dog")])
    images = []
    for source in ("photos", "t.csv", "t.tar"):
        report = prepared(tmp_path / source, tmp_path / f"{source}-out")
        assert (report["samples"], report["skipped"], report["ignored"]) == (1, {}, {})
        images += [sample.image for sample in read_shards(tmp_path / f"{source}-out")]
    assert images[0] == images[1] == images[2]


def test_files_next_to_tars_are_counted(tmp_path):
    write_tar(tmp_path / "in" / "0.tar", [("a.jpg", picture()), ("a.txt", b"a dog")])
    (tmp_path / "in" / "0_stats.json").write_text("{}")
    (tmp_path / "in" / "0.parquet").write_text("")
    put(tmp_path / "in" / "more", "b")
    put(tmp_path / "in", "._a")
    report = prepared(tmp_path / "in", tmp_path / "out")
    assert report["ignored"] == {".json": 1, ".parquet": 1, "folder": 1, "hidden": 2}


@pytest.mark.parametrize("place", ["photos", "photos/of/dogs"])
def test_a_table_among_pairs_does_not_hide_them(place, tmp_path):
    put(tmp_path / place, "a")
    (tmp_path / "photos" / "stats.parquet").write_text("")
    report = prepared(tmp_path / "photos", tmp_path / "out")
    assert (report["samples"], report["ignored"]) == (1, {".parquet": 1})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("captions.json", r"docs/faq\.md\)$"),
        ("captions.xml", "or scenes:train$"),
        ("captions.txt", r"rename it to \.csv \(commas\) or \.tsv \(tabs\)$"),
    ],
)
def test_a_file_that_is_no_source_says_what_is(name, hint, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(PowerclipError, match=rf"{name} cannot be read as a source; give a folder of images .*{hint}"):
        prepared(tmp_path / name, tmp_path / "out")


def test_a_folder_without_captions_says_what_to_do(tmp_path):
    put(tmp_path / "photos", "a")
    (tmp_path / "photos" / "a.txt").unlink()
    with pytest.raises(
        PowerclipError, match="none of the 1 images in .* has a caption; put NAME.txt next to NAME.jpg, or"
    ):
        prepared(tmp_path / "photos", tmp_path / "out")
    (tmp_path / "photos" / "metadata.jsonl").write_text("{}")
    with pytest.raises(PowerclipError, match="or give the table .*metadata.jsonl in place of the folder"):
        prepared(tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("https://example.org/a.tar", "download it"),
        ("s3://bucket/shards", "download it"),
        ("in/*.tar", "a pattern is not read"),
        ("in/{000..002}.tar", "a pattern is not read"),
        ("in/gone", "or scenes:train$"),
    ],
)
def test_a_source_that_is_not_there_says_what_is_read(source, hint, tmp_path):
    with pytest.raises(PowerclipError, match=f"^no source at .*{hint}"):
        prepared(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["A.JPG.txt", "a.txt"])
def test_a_caption_of_nearly_the_name_is_named(name, tmp_path):
    (tmp_path / "A.JPG").write_bytes(picture())
    (tmp_path / name).write_text("a dog")
    with pytest.raises(PowerclipError, match=rf"\({re.escape(name)} is there: rename it to A\.txt\)$"):
        prepared(tmp_path, tmp_path.with_name("out"))


def test_a_folder_of_compressed_tars_says_what_to_do(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar.gz").write_bytes(b"")
    with pytest.raises(PowerclipError, match=r"no image in .*; it holds compressed tars: decompress them \(gunzip\)$"):
        prepared(tmp_path / "in", tmp_path / "out")


def test_suffixes_of_tables_may_be_written_in_any_case(tmp_path):
    put(tmp_path / "photos", "a")
    rows = pa.table({"path": [str(tmp_path / "photos" / "a.jpg")], "caption": ["a dog"]})
    for folder, names in {"upper": ["0.PARQUET"], "mixed": ["0.parquet", "1.Parquet"]}.items():
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in names:
            parquet.write_table(rows, tmp_path / "in" / folder / name)
        report = prepared(tmp_path / "in" / folder, tmp_path / folder)
        assert (report["samples"], report["ignored"]) == (len(names), {})
        assert [path.name for path in table_files(tmp_path / "in" / folder)] == names
    with pytest.raises(PowerclipError, match=r"no image in .*mixed holds \.parquet files: name that folder"):
        prepared(tmp_path / "in", tmp_path / "out")
