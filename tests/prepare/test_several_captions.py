"""Several captions an image, from every kind of source:
none is lost in silence, each has its source and its phrases."""

import io
import json

import pytest

from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError
from powerclip.prepare.check import check
from tests.support.sources import picture, prepared
from tests.support.tars import write_tar

TEXTS = ["a dog", "a wet dog on a beach", "an animal"]


def found(folder):
    """(source, text) of each caption of each sample."""
    return [[(c.source, c.text) for c in sample.captions] for sample in read_shards(folder)]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return folder


def write_jsonl(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_list_in_a_cell_is_all_its_captions_parsed(photos, tmp_path):
    table = write_jsonl(
        photos / "t.jsonl", {"path": "0.jpg", "captions": TEXTS}, {"path": "1.jpg", "captions": ["a cat"]}
    )
    report = prepared(table, tmp_path / "out", parser="spacy")
    one, two = read_shards(tmp_path / "out")
    assert [c.text for c in one.captions] == TEXTS
    assert two.members().keys() == {"jpg", "txt", "phrases.json"}
    assert all(c.tree.parser.startswith("spacy:") and c.source == "txt" for c in (*one.captions, *two.captions))
    assert report["captions"] == {"txt": 4}
    phrases = sum(len(c.tree.phrases) for c in (*one.captions, *two.captions))
    assert report["phrases_per_caption"] == phrases / 4


def test_objects_in_a_list_name_their_sources(photos, tmp_path):
    cell = [{"text": "a dog", "source": "alt"}, "an animal", {"text": None}, 3]
    table = write_jsonl(photos / "t.jsonl", {"path": "0.jpg", "caption": cell})
    report = prepared(table, tmp_path / "out")
    assert found(tmp_path / "out") == [[("alt", "a dog"), ("txt", "an animal")]]
    assert report["remarks"] == {"no caption": 1, "caption is not text": 1}
    assert report["examples"]["no caption"] == ["row 1 (0.jpg)"]


def test_several_columns_are_several_sources(photos, tmp_path):
    (photos / "t.csv").write_text("path,alt,long\n0.jpg,a dog,a wet dog\n1.jpg,,a cat\n2.jpg,,\n")
    text = io.StringIO()
    report = prepared(photos / "t.csv", tmp_path / "out", caption_column=("long", "alt"), text=text)
    assert found(tmp_path / "out") == [[("long", "a wet dog"), ("alt", "a dog")], [("long", "a cat")]]
    assert report["captions"] == {"long": 2, "alt": 1}
    assert report["remarks"] == {"empty caption": 1}
    assert report["skipped"] == {"empty caption": 1}
    assert "captions: 2 long, 1 alt; 1 empty caption" in text.getvalue()
    with pytest.raises(PowerclipError, match="has no column 'lang'; did you mean long"):
        prepared(photos / "t.csv", tmp_path / "other", caption_column=("alt", "lang"))


def test_lists_and_columns_of_parquet(photos, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = {"path": ["0.jpg", "1.jpg"], "alt": [["a dog", "dogs"], []], "long": ["a wet dog", "a cat"]}
    parquet.write_table(pyarrow.table(rows), photos / "t.parquet")
    prepared(photos / "t.parquet", tmp_path / "out", caption_column=("alt", "long"))
    first = [("alt", "a dog"), ("alt", "dogs"), ("long", "a wet dog")]
    assert found(tmp_path / "out") == [first, [("long", "a cat")]]


def test_the_lines_of_a_text_file_when_asked(photos, tmp_path):
    (photos / "0.txt").write_text("a dog\n\n a wet  dog \n")
    (photos / "1.txt").write_text("a cat")
    prepared(photos, tmp_path / "lines", caption_lines=True)
    assert found(tmp_path / "lines") == [[("txt", "a dog"), ("txt", "a wet dog")], [("txt", "a cat")]]
    prepared(photos, tmp_path / "one")
    assert found(tmp_path / "one")[0] == [("txt", "a dog a wet dog")]
    with pytest.raises(PowerclipError, match="caption_lines was None, now True"):
        prepared(photos, tmp_path / "one", caption_lines=True)


def test_lines_of_a_file_and_of_a_cell_end_alike(photos, tmp_path):
    text = "one\u2028two\x85three\x0bfour\r\n\r\nfive\rsix\nseven"
    table = write_jsonl(photos / "t.jsonl", {"path": "0.jpg", "caption": text})
    (photos / "0.txt").write_bytes(text.encode())
    for source, name in ((table, "cell"), (photos, "file")):
        prepared(source, tmp_path / name, caption_lines=True)
    (cell,), (file,) = (found(tmp_path / name) for name in ("cell", "file"))
    assert cell == file
    assert [text for _, text in cell][1:] == ["five", "six", "seven"]


def test_a_column_given_twice_is_one(photos, tmp_path):
    (photos / "t.csv").write_text("path,alt,long\n0.jpg,a dog,a wet dog\n")
    prepared(photos / "t.csv", tmp_path / "one", caption_column=("alt", "2"))
    prepared(photos / "t.csv", tmp_path / "two", caption_column=("alt", "long", "alt"))
    assert found(tmp_path / "one") == [[("txt", "a dog")]]
    assert found(tmp_path / "two") == [[("alt", "a dog"), ("long", "a wet dog")]]
    source = tar_of(tmp_path / "in.tar", alt=b"a dog")
    prepared(source, tmp_path / "tar", caption_key=("alt", ".alt"))
    assert found(tmp_path / "tar") == [[("txt", "a dog")]]


TREE = {"leaves": [[0, 1], [2, 5]], "phrases": [{"label": "NP", "leaves": [0, 1]}], "parser": "gold"}


def tar_of(path, **files):
    write_tar(path, [(f"a.{name.replace('_', '.')}", data) for name, data in {"jpg": picture(), **files}.items()])
    return path


def test_several_extensions_and_keys_of_tars(tmp_path):
    info = json.dumps({"alt": ["a dog", "dogs"], "url": "x"}).encode()
    source = tar_of(
        tmp_path / "in.tar", txt=b"a dog", syn_txt=b"a wet dog", json=info, phrases_json=json.dumps(TREE).encode()
    )
    report = prepared(source, tmp_path / "out", caption_key=("syn.txt", "json:alt", "txt"))
    (sample,) = read_shards(tmp_path / "out")
    of_json = [("json:alt", "a dog"), ("json:alt", "dogs")]
    assert found(tmp_path / "out") == [[("syn.txt", "a wet dog"), *of_json, ("txt", "a dog")]]
    assert [c.tree is not None for c in sample.captions] == [False, True, False, True]  # phrases of the same text
    assert sample.metadata["url"] == "x"
    assert report["ignored"] == {}
    with pytest.raises(PowerclipError, match="no caption under long.txt; files seen"):
        prepared(source, tmp_path / "other", caption_key=("txt", "long.txt"))


def test_a_shard_is_prepared_again_with_all_its_captions(tmp_path):
    listed = [{"source": "alt", "text": "a dog", "phrases": TREE}, {"source": "syn", "text": "A &amp; B"}]
    source = tar_of(tmp_path / "in.tar", txt=b"a dog", captions_json=json.dumps(listed).encode())
    prepared(source, tmp_path / "kept", parser="spacy")
    prepared(source, tmp_path / "new", parser="spacy", replace_annotations=True)
    (kept,), (new,) = read_shards(tmp_path / "kept"), read_shards(tmp_path / "new")
    assert found(tmp_path / "kept") == found(tmp_path / "new") == [[("alt", "a dog"), ("syn", "A & B")]]
    assert [c.tree.parser == "gold" for c in kept.captions] == [True, False]
    assert all(c.tree.parser.startswith("spacy:") for c in new.captions)
    assert kept.captions[1].original == "A &amp; B"
    assert check(tmp_path / "kept")["measures"]["captions"]["mean"] == 2


def test_the_lines_of_a_tar_come_with_its_other_captions(tmp_path):
    listed = [{"source": "alt", "text": "a dog", "phrases": TREE}, {"source": "syn", "text": "A & B"}, None]
    source = tar_of(tmp_path / "in.tar", txt=b"a dog\na cat", captions_json=json.dumps(listed).encode())
    report = prepared(source, tmp_path / "out", caption_lines=True)
    assert found(tmp_path / "out") == [[("alt", "a dog"), ("txt", "a cat"), ("syn", "A & B")]]
    assert (report["remarks"], report["ignored"]) == ({"no caption": 1}, {})
    assert next(iter(read_shards(tmp_path / "out"))).tree is not None
    prepared(tar_of(tmp_path / "2.tar", captions_json=b'["a\\nb"]'), tmp_path / "two", caption_lines=True)
    assert found(tmp_path / "two") == [[("txt", "a"), ("txt", "b")]]


def test_captions_that_could_not_be_read_again_are_not_written(photos, tmp_path):
    table = write_jsonl(
        photos / "t.jsonl", {"path": "0.jpg", "caption": ["a" * 16_370] * 256}, {"path": "1.jpg", "caption": TEXTS}
    )
    report = prepared(table, tmp_path / "out")
    assert report["skipped"] == {"captions and phrases too large": 1}
    assert len(found(tmp_path / "out")) == report["samples"] == 1


def test_too_many_captions_of_one_image_are_a_reason(photos, tmp_path):
    table = write_jsonl(
        photos / "t.jsonl", {"path": "0.jpg", "caption": ["a dog"] * 257}, {"path": "1.jpg", "caption": "a"}
    )
    assert prepared(table, tmp_path / "out")["skipped"] == {"more than 256 captions": 1}
